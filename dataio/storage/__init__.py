"""Bytes to and from folders and buckets: remote (addresses, the client), store (a local corpus),
object_store (one in a bucket), block_file (large writes), file_lock (one writer).
"""
