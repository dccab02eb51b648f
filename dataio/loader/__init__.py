"""Batches of crops, a pure function of the seed: config, batch, state, loader (the iterator).

counter_random, sampler, augment, crop_spec and draws say what a sample is; read_threads,
buffer_pool, crop_source and device_source read it; graph (what is left to do, and
nothing), views and view_graph (on a CPU), dali and dali_ops (on a GPU) finish it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
