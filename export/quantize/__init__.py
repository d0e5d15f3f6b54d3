"""Quantizing one matrix: nested codes, GPTQ, and 4-bit codes that a source already has.

May import: sol_rt.bundle, sol_rt.errors.
"""
