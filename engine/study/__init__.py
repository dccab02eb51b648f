"""A convergence study, run: own_arms (of plugins), encoders, config, arms, recipes, variation,
plan, preflight, origin, pool, processes, dask_pool, pretext, search, costs, gather, curves, run.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
