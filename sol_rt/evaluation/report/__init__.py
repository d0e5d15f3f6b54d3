"""Turns runs into figures with confidence intervals, and figures into tables.

May import: sol_rt.evaluation.quality, sol_rt.generate and the folders below it.
"""
