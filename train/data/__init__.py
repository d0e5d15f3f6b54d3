"""Text to train on: files become token sequences, sequences become windows.

May import: sol_rt.train.config, sol_rt.text, sol_rt.errors.
"""
