"""Commands that measure a model: `bench`, `perplexity`, `eval`, `calibrate`.

May import: everything but sol_rt.export and sol_rt.train.
"""
