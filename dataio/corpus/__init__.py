"""The format on disk: conversion (how it was made), manifest (what is in), quarantine (what is
not), root and ome (Zarr's metadata), arrays (a volume's arrays), chunk_table, channel_rows and
table_writer.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
