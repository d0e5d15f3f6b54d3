"""Measures quality: perplexity, schedules on held-out text, given continuations, and intervals.

May import: sol_rt.generate and the folders below it.
"""
