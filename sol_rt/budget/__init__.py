"""Who picks the next action: cost model, controller, schedules, policy session, dominated actions.

May import: sol_rt.engine and the folders below it.
"""
