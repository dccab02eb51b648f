"""`mim3d bench step` and `mim3d bench optim`: the training step, and its last part alone.

Files in reading order: stage (the command), options, contestants (what is stepped), peers (MAE as
others write it), plain (a compiled step in plain PyTorch), rounds (clocks), table; settings, sweep
(which of them suit this machine); calibrate (laws for `mim3d plan`, of steps in probes, timed by
op_times, fitted by fit); profile (where the time goes); optim (one update of the
optimiser beside others).
"""
