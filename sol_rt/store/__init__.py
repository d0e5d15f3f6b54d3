"""Where bundles and checkpoints live on this machine, the recipes of known models, and fetching them.

May import: sol_rt.bundle and the folders below it.
"""
