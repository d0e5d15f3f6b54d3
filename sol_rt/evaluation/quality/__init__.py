"""Quality: perplexity, held-out text, MMLU, the runs behind them and their intervals.

May import: sol_rt.generate and the folders below it.
"""
