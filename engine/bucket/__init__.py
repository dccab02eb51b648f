"""A run in a bucket: agreement (errors of saving threads), mirror (a folder's files there),
bucket_shelf (its checkpoints), claim (its one writer), place (a run's place, of either kind).
"""
