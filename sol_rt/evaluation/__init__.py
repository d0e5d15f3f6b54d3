"""Measures and describes bundles: quality, speed, reports, HTML pages, `inspect`, `doctor`, the lm-eval model.

May import: sol_rt.generate and the folders below it.
"""
