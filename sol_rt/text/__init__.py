"""Text on its way in and out: tokenizer, chat template, stop strings.

May import: sol_rt.errors.
"""
