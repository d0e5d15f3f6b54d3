"""Runs one step: tokens and an action in, logits and hidden states out. Runners, KV cache, states,
providers, GPUs.

May import: sol_rt.store, sol_rt.bundle, sol_rt.text, sol_rt.ops.
"""
