"""Choosing actions by measurement: text to calibrate on, losses, times, active channels, LM head bits.

May import: sol_rt.export.graphs and the folders below it, the runtime.
"""
