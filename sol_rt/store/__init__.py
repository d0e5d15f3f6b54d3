"""Storage of bundles and checkpoints on this machine, downloads of checkpoints, and recipes of known models.

May import: sol_rt.bundle and the folders below it.
"""
