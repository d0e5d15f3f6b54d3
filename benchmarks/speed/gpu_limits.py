"""Measures what limits a step on a device: bandwidth, time per launch, number of launches, memory in use.

gpu.py uses these functions; the module is no command.
"""

from __future__ import annotations

import itertools
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper

from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.engine import hardware
from sol_rt.engine.providers import Provider
from sol_rt.generate.native.engine import Engine
from speed.node_costs import node_cost

import onnxruntime as ort

_COPY_BYTES = 512 << 20
_SOFTWARE_COPY_BYTES = 64 << 20
_LEAST_COPY_BYTES = 8 << 20
_CHAIN = 256
_KERNEL_LAUNCHES = {"DecoderLayer": 11, "NestedMatMul": 2, "NestedGather": 1}
"""Kernel launches of the CUDA operators at one token (docs/design/gpu.md)."""


def copy_gb_per_second(provider: Provider) -> float:
    """10^9 bytes per second that y = -x over large tensors reads and writes on the provider's device."""
    size = _COPY_BYTES if provider.gpu is not None and not provider.software else _SOFTWARE_COPY_BYTES
    free = hardware.free_memory_bytes() if provider.gpu is None else provider._free_bytes()
    if free is not None:
        size = max(_LEAST_COPY_BYTES, min(size, free // 8))
    seconds = _seconds_a_run(provider, [helper.make_node("Neg", ["x"], ["y"])], size // 4)
    return 2 * size / max(seconds, 1e-12) / 1e9


def launch_us(provider: Provider) -> float:
    """Microseconds per kernel in a chain of small kernels that wait for one another, captured if the provider can."""
    names = ["x", *(f"x{index}" for index in range(1, _CHAIN)), "y"]
    nodes = [helper.make_node("Sin", [a], [b]) for a, b in itertools.pairwise(names)]
    return _seconds_a_run(provider, nodes, 64, capture=provider.can_capture) / _CHAIN * 1e6


def _seconds_a_run(provider: Provider, nodes: list[NodeProto], count: int, *, capture: bool = False) -> float:
    """Seconds per run of nodes that compute y from x, both float [count], without the time to wait for the device."""
    x_info, y_info = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [count]) for name in "xy")
    graph = helper.make_graph(nodes, "limit", [x_info], [y_info])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()
    session = provider._session(model, provider.options(), capture=capture)
    binding = session.io_binding()
    zeros = np.zeros(count, np.float32)
    place = ort.OrtValue.ortvalue_from_numpy if provider.gpu is None else provider.memory().place
    x, y = place(zeros), place(zeros.copy())
    binding.bind_ortvalue_input("x", x)
    binding.bind_ortvalue_output("y", y)
    wait = Wait(provider)

    def passes(number: int) -> float:
        start = time.perf_counter()
        for _ in range(number):
            session.run_with_iobinding(binding)
        wait()
        return time.perf_counter() - start

    passes(4)
    few, many = (min(passes(number) for _ in range(3)) for number in (2, 12))
    return (many - few) / 10


class Wait:
    """Waits until the provider's device has finished all work, by reading a few bytes. WebGPU needs the read."""

    def __init__(self, provider: Provider) -> None:
        self._memory = None if provider.gpu is None else provider.memory()
        if self._memory is not None:
            self._there = self._memory.zeros((1,), "float32")
            self._here = ort.OrtValue.ortvalue_from_numpy(np.zeros(1, np.float32))

    def __call__(self) -> None:
        if self._memory is not None:
            self._memory.read([self._there], [self._here])


def used_bytes(provider: Provider) -> int | None:
    """Bytes of device memory in use now; None on the CPU and if the driver does not report it."""
    if provider.gpu is None:
        return None
    if provider.software:  # a software adapter uses this process's shared memory
        try:
            lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssShmem:"))
        except (OSError, StopIteration):
            return None
    free = provider._free_bytes()
    return None if free is None else provider.gpu.total_bytes - free


def launches(bundle: Bundle, provider: Provider, actions: Sequence[Action]) -> dict[Action, int]:
    """Number of kernels that one step of each action launches on a GPU, counted in ONNX Runtime's profile."""
    counts = {}
    with tempfile.TemporaryDirectory() as folder, _profiling(str(Path(folder) / "profile")):
        for action in actions:
            engine = Engine(bundle, provider=provider.name, device=provider.device, native_ops=provider.native)
            engine.forward([1], action)
            gpu: Any = engine.gpu
            made = gpu.graphs._opened
            paths = {kind: Path(graph.session.end_profiling()) for kind, graph in made.items()}
            profile = next(path for kind, path in paths.items() if gpu._plan(action).step == kind)
            events = json.loads(profile.read_text(encoding="utf-8"))
            nodes = [event["args"] for event in events if event["cat"] == "Node" and "op_name" in event["args"]]
            widest = bundle.config.variants[action.variant].precision.widest
            counts[action] = sum(
                _KERNEL_LAUNCHES.get(node["op_name"]) or node_cost(node["op_name"], node, widest, 1)[0]
                for node in nodes
            )
    return counts


@contextmanager
def _profiling(prefix: str) -> Iterator[None]:
    """Within this context, new sessions write profiles and capture nothing."""
    plain, captures = Provider.options, os.environ.get("SOL_RT_CAPTURE")

    def options(self: Provider) -> ort.SessionOptions:
        made = plain(self)
        made.enable_profiling, made.profile_file_prefix = True, prefix
        return made

    Provider.options = options  # type: ignore[method-assign]
    os.environ["SOL_RT_CAPTURE"] = "0"
    try:
        yield
    finally:
        Provider.options = plain  # type: ignore[method-assign]
        del os.environ["SOL_RT_CAPTURE"]
        if captures is not None:
            os.environ["SOL_RT_CAPTURE"] = captures
