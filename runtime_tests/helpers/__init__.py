"""Helpers of several test files: random weights, bundles and checkpoints, a NumPy reference, programs to start."""
