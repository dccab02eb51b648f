"""Boxes of voxels from a corpus: corpus (opening one), datasets (which volumes, and how often),
shards (where bytes come from), which are local_shards and remote_shards, table_watch (whether they
are the open table's still), stored_array (a row of the table), kept_shard, chunk_cache and
disk_cache (what was read and is kept), shard_reader (chunks to voxels), normalisation,
whole_volume, label_points (voxels of classes), voxel_weights (which voxels count).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
