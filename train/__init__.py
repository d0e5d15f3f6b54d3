"""Trains a policy: `trainer.py` runs two stages, `warm_start.py` and `grpo.py`. docs/training.md explains them.

Needs the extra `train`. May import: sol_rt.export, sol_rt.generate and the folders below it. From top to bottom:
trainer; holdout; warm_start; grpo; run; policy_network, multipliers; rollouts; data, reference_model; config.
"""
