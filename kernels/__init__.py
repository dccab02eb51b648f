"""Fused Triton operations for masked modelling of volumes, each beside its PyTorch reference."""

if __name__ != "mim3d.kernels":
    raise ImportError(
        f"this package is mim3d.kernels but was imported as {__name__!r}. Import mim3d.kernels "
        "(pip install -e . in the repository's root), and keep the root off PYTHONPATH: a plain "
        "'kernels' would shadow Hugging Face's package of that name."
    )
