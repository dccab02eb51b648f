"""Commands that use trained weights: predict, embed, export; scan_arguments (options they share),
messages (how results are said)."""
