"""The fine-tuning run: config, splits; task, dice, segmentation, classification, network;
validation, run_folder, finetune.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
