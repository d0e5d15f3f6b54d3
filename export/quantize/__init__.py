"""Quantizes one matrix: nested codes, GPTQ, and the 4-bit codes that a quantized source already has.

May import: sol_rt.bundle, sol_rt.errors.
"""
