"""Holds a request over a whole generation: a budget, a rate, or a mean on each axis.

May import: sol_rt.budget.cost, sol_rt.engine and the folders below it.
"""
