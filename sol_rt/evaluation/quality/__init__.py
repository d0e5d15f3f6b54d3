"""Measures quality: perplexity, schedules on held-out text, MMLU (its exam and how it is answered), and intervals.

May import: sol_rt.generate and the folders below it.
"""
