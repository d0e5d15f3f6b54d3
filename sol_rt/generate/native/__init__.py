"""Sessions of the native core (core/): runs, scores, streams' options and callbacks.

May import: sol_rt.generate and the folders below it.
"""
