"""What a machine with a GPU is asked before and beside the stages.

Files in reading order: installed (optional modules), checks (each part once, on something tiny),
ready (runs them), caches (the loader's rate from each cache), summary (the page of bench/gpu.sh:
targets beside what was reached; standard library alone).
"""
