"""Using a fine-tuned network: config, scratch (a scan through conversion), channels,
scans, own_grid, label_map, classes, label_files (whose each is), truth, dealt (who was trained on),
scores, ledger, loop, predict, embed.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
