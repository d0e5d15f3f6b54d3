"""Reading a GGUF file: metadata as a config, tensors, 4-bit codes, tokenizer.

May import: what sol_rt.export.sources may, and its modules beside this folder.
"""
