"""Cost of a decode step: bytes by the bytes model, or milliseconds that were measured on this device.

May import: sol_rt.engine and the folders below it.
"""
