"""Parts that are installed on request: which extra brings a module, told where it is missing."""

from collections.abc import Iterator
from contextlib import contextmanager

from mim3d.dataio.errors import Mim3dError

EXTRAS = {
    "monai": "train",
    "matplotlib": "train",
    "tensorboard": "train",
    "jinja2": "study",
    "obstore": "remote",
    "distributed": "dask",
    "huggingface_hub": "hub",
    "nvidia": "gpu",
    "torchao": "fp8",
}
"""Imported module -> the extra of mim3d that installs it."""


class MissingExtraError(Mim3dError, ImportError):
    """Something asked for needs a package that this installation was made without."""


def missing(error: ModuleNotFoundError) -> MissingExtraError | None:
    """The same error with its remedy; None for a module that no extra brings."""
    module = (error.name or "").partition(".")[0]
    if module not in EXTRAS:
        return None
    return MissingExtraError(
        f"{module} is not installed, and this part of mim3d needs it: "
        f"pip install 'mim3d[{EXTRAS[module]}]'"
    )


@contextmanager
def extra() -> Iterator[None]:
    """Imports under this tell the extra that brings what is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        remedy = missing(error)
        if remedy is None:
            raise
        raise remedy from None
