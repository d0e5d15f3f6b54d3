"""Opens the native core (core/): its functions, structs and errors.

May import: sol_rt.ops, sol_rt.errors.
"""
