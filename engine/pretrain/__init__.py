"""The pretraining run: config, recipes, data; optim, lamb, schedule, train_step, trainer, pretrain;
held_out, metrics, recorder, profiler, reconstruction; run_folder, run_state; plan (before a run).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
