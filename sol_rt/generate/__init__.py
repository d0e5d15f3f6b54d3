"""From a prompt to text: `SolModel`, the decode loop, sampling, traces.

May import: sol_rt.budget and the folders below it.
"""
