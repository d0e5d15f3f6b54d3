"""Reads checkpoint folders: safetensors, PyTorch files, or the initializers of an ONNX graph.

May import: the modules of sol_rt.export.sources, and what these may import.
"""
