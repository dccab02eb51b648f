"""What a run leaves on disk: config, files, plain (dataclasses from JSON), history, folder_lock,
own_parts (those of plugins), address (of a run in a bucket); checkpoint, shelf (where they stand),
checkpoint_files, checkpoint_reader; scan_recipe; encoder_file, tensor_files, nnunet_form,
model_card, export, hub (an export on the Hugging Face Hub).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
