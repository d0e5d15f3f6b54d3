"""Reads a source: checkpoint folders and GGUF files, their configs, tensors and tokenizers; the families' facts.

May import: sol_rt.export.quantize, sol_rt.bundle, sol_rt.errors.
"""
