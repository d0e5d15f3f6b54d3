"""Scenarios that test_cuda_host_side.py runs in their own processes: `cuda_host_run.py SCENARIO OPERATORS BUNDLE ...`.

ONNX Runtime is the wheel under test there, and CUDA's libraries are native/cuda_stand_in.cc. A line of JSON says what
happened.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.cli import main
from sol_rt.engine import providers
from sol_rt.engine.gpu import cuda, gpu_engine
from sol_rt.engine.gpu.device_cache import DeviceCache
from sol_rt.engine.gpu.device_inputs import DeviceInputs
from sol_rt.engine.gpu.device_sessions import DeviceGraphs, OpenGraph
from sol_rt.engine.gpu.gpu_engine import GpuEngine
from sol_rt.errors import SolError
from sol_rt.generate.native.engine import Engine
from sol_rt.ops import library_path

import onnxruntime as ort

COUNTS = ("copies to it", "copies back", "copies there", "waits", "kernels", "graphs")
STEPS = 2

stand_in = ctypes.CDLL("libcuda.so.1")
stand_in.used_bytes.restype = stand_in.most_used_bytes.restype = ctypes.c_size_t
stand_in.set_limit.argtypes = (ctypes.c_size_t,)
stand_in.lose_after.argtypes = (ctypes.c_int64,)
stand_in.counted.restype = ctypes.c_int64
stand_in.illegal_in_capture.restype = ctypes.c_char_p


def counted(what: str) -> int:
    return int(stand_in.counted(what.encode()))


def prepare(operators: Path) -> None:
    """Kernels compute nothing, so no number is looked at; and CUDA's wheels are left alone where they are installed."""
    providers._PROBE_TOLERANCE = float("inf")
    providers.library_path = lambda name="cpu": operators if name == "cuda" else library_path(name)  # type: ignore[assignment]
    cuda.wheel_versions = dict  # type: ignore[assignment]  # the stock wheel is installed as well
    cuda.load_libraries = lambda: None
    gpu_engine._finite = lambda values: not values.fill(0)  # type: ignore[assignment]  # the core looks at them, too


def gpu(engine: Engine) -> GpuEngine:
    assert engine.gpu is not None
    return engine.gpu


def steps(bundle: Bundle) -> dict[str, Any]:
    """Every action: its session, a captured step after another, on a cache that grows in between."""
    engine = Engine(bundle, provider="cuda")
    graphs, cache = gpu(engine).graphs, gpu(engine).cache
    engine.forward(range(10, 30), bundle.config.dense)
    costs, captures, kernels = {}, 0, 0
    for place in ("short", "grown"):
        for entry in bundle.config.actions:
            engine.forward([5], entry.action)
            captures += counted("captures")
            kernels += counted("captured kernels")
            stand_in.forget_counts()
            for _ in range(STEPS):
                engine.forward([6], entry.action)
            costs[f"{entry.action.tag} {place}"] = {what: counted(what) / STEPS for what in COUNTS}
        if place == "short":
            before = cache.capacity
            engine.reset()
            engine.forward([7] * (before + 1), bundle.config.dense)
            assert cache.capacity > before
    return {
        "native": engine.native,
        "captured": {kind.key: one.captured for kind, one in graphs._opened.items() if kind.one_token},
        "captures": captures,
        "captured kernels": kernels,
        "costs": costs,
    }


def memory(bundle: Bundle) -> dict[str, int]:
    """Bytes in use, from before the engine to after it."""
    Engine(bundle, provider="cuda")  # what ONNX Runtime keeps to the process' end is there now
    gc.collect()
    found = {"before": stand_in.used_bytes()}
    stand_in.forget_counts()
    engine = Engine(bundle, provider="cuda")
    found |= {"weights": gpu(engine).weight_bytes}
    found |= {"loaded": stand_in.used_bytes(), "most": stand_in.most_used_bytes()}
    for variant in bundle.config.variants:
        engine.forward([5], Action.parse(f"k100-{variant}"))
    engine.forward([5] * 150, bundle.config.dense)
    engine.forward([5], bundle.config.dense)
    cache = gpu(engine).cache
    found |= {"all weights": gpu(engine).weight_bytes, "grown cache": cache.layout.bytes_at(cache.capacity)}
    found["in use"] = stand_in.used_bytes()
    del engine, cache
    gc.collect()
    return {**found, "after": stand_in.used_bytes()}


def short(bundle: Bundle, limit: str) -> dict[str, Any]:
    """An engine where memory is short."""
    stand_in.set_limit(int(limit))
    named = error_of(Engine, bundle, provider="cuda")
    engine = Engine(bundle)
    engine.forward([5], bundle.config.dense)
    gc.collect()
    return {"named": named, "auto": engine.provider_name, "used": stand_in.used_bytes()}


PLACES: dict[str, tuple[type, str, int]] = {
    "prompt": (GpuEngine, "_batch", 8),
    "variant": (DeviceGraphs, "_make", 8),
    "capture": (OpenGraph, "try_capture", 40),
    "step": (OpenGraph, "run", 0),
    "results": (DeviceInputs, "receive", 0),
    "growth": (DeviceCache, "resize", 8),
}
"""Places where the GPU is lost: after so many of its calls, counted from the next call of a method."""


def lose_at(place: str) -> None:
    """Loses the GPU once, when `place` is next reached."""
    owner, name, calls = PLACES[place]
    original = getattr(owner, name)

    def losing(*arguments: Any, **named: Any) -> Any:
        setattr(owner, name, original)
        stand_in.lose_after(calls)
        return original(*arguments, **named)

    setattr(owner, name, losing)


def lost(bundle: Bundle, place: str) -> dict[str, Any]:
    """A GPU that is lost, and what goes on without it."""
    engine, dense = Engine(bundle, provider="cuda"), bundle.config.dense
    other = next(entry.action for entry in bundle.config.actions if entry.action.bits != dense.bits)
    engine.forward([5], dense)
    tokens = {"prompt": 20, "growth": 2 * gpu(engine).cache.capacity}.get(place, 1)
    lose_at(place)
    first = error_of(engine.forward, [5] * tokens, other if place in ("variant", "capture") else dense)
    length = gpu(engine).length
    engine.reset()
    again = error_of(engine.forward, [5], dense)
    new = error_of(Engine, bundle, provider="cuda")
    del engine
    gc.collect()
    cpu = Engine(bundle)
    cpu.forward([5, 6, 7], dense)
    cpu.forward([5], dense)
    return {"errors": [first, again, new], "length": length, "then": cpu.provider_name}


def command(bundle: Bundle, place: str) -> None:
    """The command line, with a GPU that is lost in the prompt or some tokens later."""
    forward, lengths = GpuEngine.forward, []

    def counting(engine: GpuEngine, tokens: Any, action: Action, **named: Any) -> Any:
        lengths.append(len(tokens))
        if len(lengths) == (1 if place == "prompt" else 4):
            lose_at(place)
        return forward(engine, tokens, action, **named)

    GpuEngine.forward = counting  # type: ignore[assignment, method-assign]
    sys.argv = ["sol-rt", "generate", "-m", str(bundle.path), "-p", "w1 w2 w3 w4", "-n", "8", "--temperature", "0"]
    sys.argv += ["--provider", "cuda"]
    sys.exit(main())


def opened(bundle: Bundle) -> dict[str, Any]:
    """Opens the provider. The error is empty if the provider works."""
    return {"error": error_of(Engine, bundle, provider="cuda")}


def error_of(call: Callable[..., Any], *arguments: Any, **named: Any) -> tuple[str, str] | None:
    """Type and text of the error that a call raises."""
    try:
        call(*arguments, **named)
    except SolError as error:
        return type(error).__name__, str(error)
    return None


if __name__ == "__main__":
    scenario, operators, folder, *rest = sys.argv[1:]
    prepare(Path(operators))
    outcome = globals()[scenario](Bundle.open(folder), *rest)
    outcome |= {"runtime": str(Path(ort.__file__).parent)}
    outcome |= {"illegal in a capture": stand_in.illegal_in_capture().decode()}
    print(json.dumps(outcome))
