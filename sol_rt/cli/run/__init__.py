"""Commands that run a model: `generate`, `chat`, `serve`.

May import: everything but sol_rt.export and sol_rt.train.
"""
