"""Measures and describes bundles: quality, speed, reports, HTML pages, `inspect`, `doctor`, the lm-eval model.

May import: everything but sol_rt.cli.
"""
