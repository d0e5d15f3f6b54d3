"""Commands that make, move or remove something: `pull` a bundle or checkpoint, `export` or `push` a bundle, `train`
a policy, `rm` what is stored.

May import: everything; `sol_rt.export` and `sol_rt.train` only inside functions, as their extras may be missing.
"""
