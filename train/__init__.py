"""Trains a policy (docs/design/policy-training.md): `trainer.py` runs two stages, `warm_start.py` and `grpo.py`.

Needs the extra `train`. May import: sol_rt.export, sol_rt.generate and the folders below it. From top to bottom:
trainer; holdout; warm_start; grpo; run; policy_network, multipliers; rollouts; data, reference_model; config.
"""
