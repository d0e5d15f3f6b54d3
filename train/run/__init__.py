"""A training as a program run: setup, state and its checkpoints, log, several processes.

May import: sol_rt.train.data, sol_rt.train.rollouts, the config, multipliers and policy network of sol_rt.train.
"""
