"""The format on disk: names, conversion (how it was made), manifest (what is in), quarantine (what
is not), root and ome (Zarr's metadata), arrays (a volume's objects and whether they are whole);
table_rows, channel_rows, table_file, table_head, chunk_table, table_writer and table_reuse (where
every chunk lies); seen_files and replacing (notes of a conversion), history (what was
taken out), writer (which commits).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
