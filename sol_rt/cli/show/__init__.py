"""Commands that show what is there: `inspect`, `verify`, `trace`, `doctor`.

May import: everything but sol_rt.export and sol_rt.train.
"""
