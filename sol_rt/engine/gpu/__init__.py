"""Everything that only a GPU needs: finding one, its memory, graphs rewritten for it, weights and runs there.

May import: what sol_rt.engine may, and its modules beside this folder.
"""
