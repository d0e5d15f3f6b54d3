"""Measures speed: tokens per second of a model, and the machine's read bandwidth.

May import: sol_rt.generate and the folders below it.
"""
