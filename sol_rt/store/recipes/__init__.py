"""Recipes of known models: what an alias stands for, the packages that carry weights, and licences to be accepted.

May import: sol_rt.store.home, sol_rt.progress, sol_rt.bundle and what these may import.
"""
