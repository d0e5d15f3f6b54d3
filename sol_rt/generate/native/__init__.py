"""The native core (bindings/c) from Python: `NativeModel` generates as `SolModel` does, without Python in the loop.

May import: sol_rt.generate and the folders below it.
"""
