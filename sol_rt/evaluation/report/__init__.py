"""Figures with intervals, and the tables they become.

May import: sol_rt.evaluation.quality, sol_rt.generate and the folders below it.
"""
