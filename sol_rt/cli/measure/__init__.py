"""Commands that measure a model: `bench`, `perplexity`, `eval`, `profile`.

May import: everything but sol_rt.export and sol_rt.train.
"""
