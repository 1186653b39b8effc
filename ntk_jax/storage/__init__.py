"""Disks and buckets: the run directory with its lock and fingerprints, its working copy where it is in a bucket,
atomic files, the block array store, and hashes.

May import `parallel` and `errors`. Knows nothing of models or of what the numbers mean.
"""
