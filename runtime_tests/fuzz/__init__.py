"""Fuzzing of every reader of a file that a user may bring: `make fuzz`, or `python -m fuzz` in runtime_tests.

`targets.py` lists the readers, `mutate.py` makes inputs, `oracle.py` judges what a reader does with one, `worker.py`
runs inputs in a process of its own, and `supervisor.py` starts workers and sees their ends. `../corpus` holds inputs
that once broke a reader, and small ones to start from.
"""
