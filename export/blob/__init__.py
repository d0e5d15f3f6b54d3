"""Writing weights.bin: its layout, what each matrix is calibrated by, and the memory that takes.

May import: sol_rt.export.sources, sol_rt.export.quantize, sol_rt.bundle.
"""
