"""Writes the ONNX graphs: the decoder, its layers, the policy.

May import: sol_rt.export.weights, sol_rt.export.sources, sol_rt.engine.signature, sol_rt.bundle.
"""
