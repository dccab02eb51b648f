"""`mim3d bench loader --remote`: crops per second from a store that takes its time.

Files in reading order: stage (the command), server (the store: a process that answers ranges late),
streams (who reads the crops), rounds (one round and its clocks), table.
"""
