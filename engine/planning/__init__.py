"""What a run will take, before it runs: sharding (what a rank holds), memory, network; corpus (what
there is to read), measured_run (how fast another was); plan (all of it).
"""
