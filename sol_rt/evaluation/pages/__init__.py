"""Pages and pictures: a trace, an action set, an evaluation.

May import: sol_rt.evaluation.report, sol_rt.generate and the folders below it.
"""
