"""Commands that use trained weights: predict, embed, export; scan_arguments, told (what they share:
options, and how results are said)."""
