"""What a run will take, before it runs. In reading order: sharding (what a rank holds), operations
(what a step computes), laws (how long each takes), fusion (passes that are compiled into one),
machine (laws and constants), corpus (what there is to read), memory, network (what hides it),
step_time, supply (loader, cores, disk), measured_run, plan (all of it), calibration (the file of a
machine that was measured), needs (what is too much), text (for people).
"""
