"""Training whatever gives a loss for a batch: train_step; optim, lamb, schedule; metrics, profiler;
run_state.
"""
