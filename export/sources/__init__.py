"""Reading a source: checkpoint folders and GGUF files, their configs, tokenizers and tensors.

May import: sol_rt.export.quantize, sol_rt.bundle, sol_rt.errors.
"""
