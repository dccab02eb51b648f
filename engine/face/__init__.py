"""mim3d: self-supervised pretraining on 3D medical volumes, as fast as the GPU allows.

The names people come for; each is imported when first used, so that `import mim3d` costs nothing:

    convert, Conversion, discover, verify     NIfTI files -> a verified Zarr corpus
    Corpus, opened_corpus, read_volume        a corpus, and whole volumes of it
    Loader, LoaderConfig                      batches of crops, on the device
    recipe, PretrainConfig, run_pretrain      masked or contrastive pretraining
    FinetuneConfig, run_finetune              segmentation and classification
    PredictConfig, run_predict                label maps or classes of new scans
    load_encoder                              a trained encoder, for any PyTorch code
    register_method, register_encoder, register_recipe, register_augmentation, Augmentation,
    Spatial, Artefacts, register_normalisation    parts of your own, in a plugin

Everything else that is public stands in `__all__` of mim3d.kernels, mim3d.dataio.* and
mim3d.engine.*. `python -m mim3d` is the command `mim3d`.
"""

from typing import Any

import lazy_loader

_lazy, _, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    """A public name, imported now; `__version__` from the installed package's metadata."""
    if name == "__version__":
        from importlib.metadata import version

        return version("mim3d")
    return _lazy(name)
