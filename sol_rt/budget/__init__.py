"""Chooses the next action: cost model, cost table, controllers, schedules, policy session, dominated actions.

May import: sol_rt.engine and the folders below it.
"""
