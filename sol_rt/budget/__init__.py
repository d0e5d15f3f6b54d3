"""Chooses the next action: cost model, calibration, controllers, schedules, policy session, dominated actions.

May import: sol_rt.engine and the folders below it.
"""
