"""The torch reference model: runs a decoder under any action with the runtime's own arithmetic.

May import: sol_rt.export.sources, sol_rt.export.graphs, sol_rt.export.quantize, sol_rt.bundle.
"""
