"""Reads a GGUF file: its metadata as a config, its tensors, its 4-bit codes, its tokenizer.

May import: the modules of sol_rt.export.sources, and what these may import.
"""
