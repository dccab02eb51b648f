"""The command line: cli (picks the command), arguments (tyro), launching, outcome (exit codes);
weights (a folder: commands that use trained weights).

One module a command: `main(words)` parses with tyro, calls the room, returns an Outcome.

Reading order follows the data: convert, verify, remove, merge, inspect, export_nifti, pretrain,
finetune, compare, demo, plan, bench, env.
"""
