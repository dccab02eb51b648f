"""What a machine with a GPU is asked before and beside the stages.

Files in reading order: installed (optional modules), checks (each part once, on something tiny),
ready (runs them), caches (the loader's rate from each cache), summary (targets of bench/gpu.sh
beside what was reached; standard library alone).
"""
