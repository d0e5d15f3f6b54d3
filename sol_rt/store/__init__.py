"""Where bundles and checkpoints are stored on this machine, how checkpoints are fetched, and recipes of known models.

May import: sol_rt.bundle and the folders below it.
"""
