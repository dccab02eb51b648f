"""Training whatever gives a loss for a batch, in the order of reading: config; trainer (the loop
and its hooks), train_step; optim, lamb, schedule, sharding; clocks, metrics, log, profiler;
run_state, checkpoints, rewinds, divergence, corpus; run (all of it put together), run_context.
"""
