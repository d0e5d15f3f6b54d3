"""What a budget costs in quality, schedule against schedule, through the runtime: held-out text and MMLU.

docs/evaluation.md says how it is done and describes the output.
"""
