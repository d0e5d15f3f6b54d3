"""Where the core computes: providers, the processor and its settings, and the engine that runs graphs on a GPU.

May import: sol_rt.store, sol_rt.bundle, sol_rt.text, sol_rt.ops.
"""
