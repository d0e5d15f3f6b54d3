"""Running episodes: on the runtime or on the torch reference model, and what every action loses at every position.

May import: sol_rt.train.reference_model, the runtime.
"""
