"""Bytes to and from folders and buckets: bucket (the client), remote (addresses), store (a local
corpus), object_store (one in a bucket), object_files (its large objects), lease (its one writer),
block_file (large writes), file_lock (one writer), links (a folder under a second name).
"""
