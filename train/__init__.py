"""Trains a policy: `trainer.py` runs two stages, `warm_start.py` and `grpo.py`. docs/training.md explains them.

Folders: `data` (text), `reference_model` (the model in torch), `rollouts` (episodes), `run` (state, log, processes).
May import: the runtime, sol_rt.export.
"""
