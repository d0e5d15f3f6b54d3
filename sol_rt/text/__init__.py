"""Turns text into tokens and tokens into text: tokenizer, chat template, stop strings.

May import: sol_rt.errors, sol_rt.read_file.
"""
