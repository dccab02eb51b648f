"""`mim3d bench convert`: the converter beside a plain script, its peers and the unavoidable work.

Files in reading order: stage (the command), options, volumes (what is converted), jobs (one
conversion in a process of its own), peers (other ways to the same end), table_open (a large chunk
table), summary (ratios, targets, tables).
"""
