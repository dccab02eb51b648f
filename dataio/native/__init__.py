"""The loops in C (crops.c, chunks.c, streams.c; README.md) and what loads them: extension."""
