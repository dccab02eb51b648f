"""Commands that use trained weights: predict, embed, export; scan_arguments, messages (what they share:
options, and how results are said)."""
