"""Commands that show something: `inspect` and `verify` a bundle, a `trace`, `list` what is stored, `doctor` for the
installation.

May import: everything but sol_rt.export and sol_rt.train.
"""
