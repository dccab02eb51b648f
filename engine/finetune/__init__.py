"""The fine-tuning run: config, targets, splits; seeding, encoder, network, rates; task, dice,
sliding_window, segmentation, volume_task, classification, regression; validation, run_folder,
trained (left for predict), finetune.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
