"""A finished corpus, looked at: verify, summary, doubts (who is who) and guesses, merged_masks,
class_numbers, histograms, montage, export_nifti."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
