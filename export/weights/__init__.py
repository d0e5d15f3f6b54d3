"""Writes weights.bin: its layout, the Hessians that calibrate it, the bits of a mixed graph, and the memory needed.

May import: sol_rt.export.sources, sol_rt.export.quantize, sol_rt.bundle.
"""
