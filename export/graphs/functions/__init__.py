"""Writes the function bodies: every operator of the domain `sol` in standard ONNX operators.

May import: sol_rt.export.graphs.nodes, sol_rt.export.sources, sol_rt.engine.signature, sol_rt.bundle.
"""
