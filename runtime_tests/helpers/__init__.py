"""What several test files share: random weights, bundles and checkpoints, a NumPy reference, programs to start."""
