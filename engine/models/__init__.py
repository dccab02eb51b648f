"""Encoders, pretext methods and decoders: config (imports no torch), vit, swin;
objective, masks, trivial, masked, mae, simmim, simclr; unetr, swin_unetr;
encoder, build (from a configuration to a module), flops; primus and resenc,
folders: two other encoders.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
