"""Turns a prompt into text: `SolModel`, the decode loop, sampling, results, traces and replay.

May import: sol_rt.budget and the folders below it.
"""
