"""Speed: tokens a second, and the read bandwidth of the machine beside them.

May import: sol_rt.generate and the folders below it.
"""
