"""Turns a prompt into text: `SolModel`, streams, settings, results and traces, over the native core.

May import: sol_rt.budget and the folders below it.
"""
