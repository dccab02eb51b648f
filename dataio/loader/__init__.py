"""Batches of crops, a pure function of the seed: config, batch, state, loader (the iterator).

sampler, crop_spec and draws say what a sample is; read_threads, buffer_pool, crop_source and
device_source read it; view_graph augments it on a CPU.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
