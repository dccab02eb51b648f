"""Sources -> corpus: run (the whole), job and work (one source), pool and dask_runner (many
at once); volume, label, resample, values, measure, intensity (voxels to be stored),
volume_writer; known_sources, held_twice and volume_ids (what is there already), forecast (before a
run), upkeep and merge (afterwards).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
