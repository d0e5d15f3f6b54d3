"""Measures quality: perplexity, schedules on held-out text, MMLU, and the runs behind them.

May import: sol_rt.generate and the folders below it, sol_rt.evaluation.report.
"""
