"""A training as a process: its checkpoints, its log, several processes of it.

May import: sol_rt.errors.
"""
