"""The compiled loops (crops.c, chunks.c) and the one place that loads them: extension."""
