"""A convergence study, run: encoders, config, arms, recipes, variation, plan, preflight, origin,
pool, processes, dask_pool, costs, pretext, search, gather, kept (results alone), curves, run.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
