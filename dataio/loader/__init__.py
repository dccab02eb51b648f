"""Batches of crops, a pure function of the seed: config, batch, state, loader (the iterator).

sampler, crop_spec and draws say what a sample is; read_threads, buffer_pool and crop_source read
it; staged_source, device_source and upload_source do so for a device, source_choice says which;
view_graph augments it on a CPU.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
