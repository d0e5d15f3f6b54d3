"""Commands that make things: `pull`, `export`, `train`.

May import: everything; `sol_rt.export` and `sol_rt.train` only inside functions, as their extras may be missing.
"""
