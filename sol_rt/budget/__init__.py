"""Chooses the next action: the dial, costs and hull as the core computes them, cost tables, dominated actions.

May import: sol_rt.engine and the folders below it.
"""
