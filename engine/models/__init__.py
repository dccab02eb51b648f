"""Encoders, pretext methods and decoders: config, registry (what there is, by name), registering
(how a plugin adds to it), own_fields (what is set of that), all without torch; vit, swin;
objective, masks, trivial, masked, mae, simmim, simclr; unetr, swin_unetr; build (mim3d's own ways
from a configuration to a module), flops, activations; primus and resenc, folders: two other
encoders.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
