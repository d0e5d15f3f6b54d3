"""Chooses a bundle's actions by measurement: calibration text, losses, times, active channels, LM head bits.

May import: sol_rt.export.graphs and the folders below it, the runtime.
"""
