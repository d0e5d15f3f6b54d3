"""Commands that show something: `inspect` and `verify` a bundle, a `trace`, `doctor` for the installation.

May import: everything but sol_rt.export and sol_rt.train.
"""
