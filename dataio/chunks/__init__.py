"""One chunk, both ways: gather, codec, encode, shard_writer; boxes (which chunks), decode; pyramid
(coarser scales of what is chunked).
"""
