"""Training a policy: rollouts, the torch reference model of every action, stage 1 and GRPO. Needs the extra `train`.

May import: sol_rt.export, sol_rt.generate and the folders below it. Inside, from top to bottom: trainer; grpo, holdout,
regression; policy_network, multipliers; rollouts; data, reference_model, run; config.
"""
