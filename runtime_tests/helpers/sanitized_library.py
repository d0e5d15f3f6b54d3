"""A pytest plugin: operator tests run on the library that SOL_RT_TEST_OPS names, built with a sanitizer.

Each tensor gets memory of its own from ONNX Runtime, so that what is read or written beyond one is seen. With
SOL_RT_TEST_ONE_THREAD the pool has one thread.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import onnxruntime as ort


class _OptionsWithoutArena(ort.SessionOptions):
    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.enable_cpu_mem_arena = False


def pytest_configure() -> None:
    if os.environ.get("SOL_RT_TEST_ONE_THREAD"):
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    ort.SessionOptions = _OptionsWithoutArena


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for module in {item.getparent(pytest.Module).obj for item in items}:
        module.LIBRARY = Path(os.environ["SOL_RT_TEST_OPS"])
