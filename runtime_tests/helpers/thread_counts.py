"""Running a model with other numbers of threads than the pool that all tests share, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from sol_rt.ops import library_path

COUNTS = (1, 2, 4 * (os.cpu_count() or 1) + 1)
"""One, two, and more than there are processors."""

_PROGRAM = """
import sys, numpy as np, onnxruntime as ort
library, folder, threads, feeds, runs = *sys.argv[1:3], *map(int, sys.argv[3:])
options = ort.SessionOptions()
options.intra_op_num_threads = threads
options.log_severity_level = 4
options.add_session_config_entry("session.intra_op.allow_spinning", "0" if threads > 2 else "1")
options.register_custom_ops_library(library)
session = ort.InferenceSession(f"{folder}/model.onnx", options, providers=["CPUExecutionProvider"])
for i in range(feeds):
    feed = dict(np.load(f"{folder}/feed{i}.npz"))
    first = session.run(None, feed)
    for _ in range(runs - 1):
        for a, b in zip(first, session.run(None, feed)):
            assert np.array_equal(a, b), "runs differ"
    np.savez(f"{folder}/out{i}.npz", *first)
"""


def assert_same_for_any_thread_count(
    model: onnx.ModelProto, feeds: Sequence[dict[str, np.ndarray]], runs: int, folder: Path
) -> None:
    """Asserts that no bit of the outputs for any of `feeds` differs between `runs` runs and numbers of threads."""
    onnx.save(model, str(folder / "model.onnx"))
    for i, feed in enumerate(feeds):
        np.savez(folder / f"feed{i}.npz", **feed)
    first: list[list[np.ndarray]] = []
    for threads in COUNTS:
        numbers = map(str, (threads, len(feeds), runs))
        command = [sys.executable, "-c", _PROGRAM, str(library_path()), str(folder), *numbers]
        done = subprocess.run(command, text=True, capture_output=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        loaded = [np.load(folder / f"out{i}.npz") for i in range(len(feeds))]
        outputs = [[file[name] for name in file.files] for file in loaded]
        for got, wanted in zip(outputs, first, strict=False):
            for a, b in zip(got, wanted, strict=True):
                np.testing.assert_array_equal(a, b, err_msg=f"{threads} threads")
        first = first or outputs
