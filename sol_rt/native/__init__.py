"""Opens the native core (core/): its functions, structs and errors.

May import: sol_rt.engine and the folders below it.
"""
