"""Draws a trace, an action set or an evaluation as an HTML page or a picture. Needs the extra `plot`.

May import: sol_rt.evaluation.report, sol_rt.generate and the folders below it.
"""
