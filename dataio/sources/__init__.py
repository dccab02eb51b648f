"""Which files belong together: images, their labels, their subjects.

source (what is found), tree (files by name, here or in a bucket), discover (which layout),
options (what a person tells), subjects, table, class_names, channels (one a file); a file a layout:
layout_folder, layout_msd, layout_nnunet, layout_bids, layout_nnssl, layout_csv,
layout_dicom; msd_download
fetches a data set, phantom and phantom_body draw a cohort where there is none.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
