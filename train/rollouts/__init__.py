"""Runs episodes, in the runtime or in the torch reference model, and measures what every action loses at a position.

May import: sol_rt.train.reference_model, the runtime.
"""
