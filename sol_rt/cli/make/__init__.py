"""Commands that make something: `pull` a checkpoint, `export` or `migrate` a bundle, `train` a policy.

May import: everything; `sol_rt.export` and `sol_rt.train` only inside functions, as their extras may be missing.
"""
