"""The pretraining run: config, recipes, openmind (its two), data; pretrain, held_out, verdict,
reconstruction, unscored; run_folder, lengthening.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
