"""Tiny models that show whether a provider computes what the CPU does; scripts/probe_graph.py writes them.

May import: sol_rt.errors.
"""
