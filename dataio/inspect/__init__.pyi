from .export_nifti import export_corpus
from .verify import verify

__all__ = [
    "export_corpus",
    "verify",
]
