"""Run by test_device.py in a process of its own: an engine on WebGPU put through its paces, JSON on stdout.

A driver that crashes takes only this process with it.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import sys
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from helpers.greedy import greedy
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.engine import hardware, providers
from sol_rt.engine.gpu.gpu_engine import GpuEngine
from sol_rt.errors import ContextError, DeviceError, NumericError, ProviderError, SolError, UsageError
from sol_rt.generate.model import SolModel
from sol_rt.generate.native.engine import Engine

import onnxruntime as ort

NO_ADAPTER = 3
"""Exit code where there is no WebGPU device."""
PROMPT = list(range(20, 50))


def unpruned(bundle: Bundle) -> list[Action]:
    """All bits at every KV density, nothing pruned."""
    kv_densities = sorted({entry.action.kv_density for entry in bundle.config.actions})
    return [
        Action(kv_density, 1.0, bits)
        for kv_density in kv_densities
        for bits in sorted({v.bits for v in bundle.config.variants.values()})
    ]


def steps(engine: Engine, count: int) -> list[np.ndarray]:
    """Logits of steps, each under another action; they pass the first capacity of the cache."""
    actions = unpruned(engine.bundle)
    engine.reset()
    engine.forward(PROMPT, engine.bundle.config.dense)
    return [engine.forward([5 + index], actions[index % len(actions)]).logits[0] for index in range(count)]


def gpu(engine: Engine) -> GpuEngine:
    assert engine.gpu is not None
    return engine.gpu


def _load(engine: Engine) -> dict[str, Any]:
    one = gpu(engine).weight_bytes
    for variant in engine.bundle.config.variants:
        gpu(engine).open(Action.parse(f"k100-{variant}"))
    return {
        "one_bytes": one,
        "all_bytes": gpu(engine).weight_bytes,
        "provider": engine.provider.as_json(),
        "floats": engine.provider.floats,
        "gpu": engine.provider.gpu_name,
    }


def _greedy(engine: Engine) -> dict[str, Any]:
    runs = {}
    for action in unpruned(engine.bundle):
        run = greedy(engine, PROMPT, action, 32)
        runs[action.tag] = {"tokens": run.tokens, "margins": run.margins}
    return runs


def _opened_by_dims(engine: Engine) -> list[bool]:
    """True for each strict session, made by a host of a file alone, that gives finite numbers.

    The first session chooses tokens, the second one does not.
    """
    bundle, finite, sizes = engine.bundle, [], {"S": 1, "C": 64}
    for dims in ({"sparse_kv_layers": 0}, {"sparse_kv_layers": bundle.config.model.num_layers, "S": 1}):
        options = engine.provider.options()
        for dim, size in {**dims, "sparse_channel_layers": 0}.items():
            options.add_free_dimension_override_by_name(dim, size)
        session = engine.provider.session(bundle.file(bundle.config.variants["s100-q4"].file), options)
        feed = {
            node.name: np.zeros([sizes.get(dim, dim) for dim in node.shape], node.type[len("tensor(") : -1])
            for node in session.get_inputs()
        }
        feed |= {"num_logits": np.ones(1, np.int64), "total_length": np.ones(1, np.int32)}
        finite.append(bool(np.isfinite(session.run(["logits"], feed)[0]).all()))
    return finite


def _captured(engine: Engine) -> dict[str, int]:
    """Counts the graphs of steps, and the graphs among them that run captured."""
    actions = unpruned(engine.bundle)
    engine.reset()
    engine.forward(PROMPT, engine.bundle.config.dense)
    for action in actions:
        engine.forward([5], action)
    return {"graphs": len(actions), "captured": gpu(engine).graphs.captured}


def _generated(folder: str) -> dict[str, Any]:
    """Tokens and actions of generations, three of them greedy."""
    fixed = {"schedule": "fixed:k030-s100-q8"}
    settings: dict[str, dict[str, Any]] = {
        "greedy": {**fixed, "do_sample": False},
        "policy": {"schedule": "sol", "budget": 0.95, "do_sample": False},
        "entropy": {"schedule": "entropy", "budget": 0.9, "do_sample": False},
        "sampled": {**fixed, "do_sample": True, "temperature": 0.8, "seed": 7},
    }
    model, runs = SolModel.from_pretrained(folder, provider="webgpu"), {}
    for name, setting in settings.items():
        stream = model.stream(PROMPT, max_new_tokens=12, **setting)
        steps = list(stream)
        runs[name] = {"tokens": [step.token for step in steps], "actions": [step.action.tag for step in steps[1:]]}
    return runs


def _broken(engine: Engine) -> dict[str, Any]:
    """Error of a run that ONNX Runtime refuses, and True if the engine works afterwards."""
    dense = engine.bundle.config.dense
    engine.reset()
    before = engine.forward([1, 2, 3], dense).logits
    engine.forward([4], dense)
    bound, kind = gpu(engine)._bound, gpu(engine)._plan(dense).step
    whole = bound[kind]
    bound[kind] = whole[0], whole[0].session.io_binding()
    try:
        engine.forward([5], dense)
        error = ""
    except DeviceError as caught:
        error = str(caught)
    length, bound[kind] = engine.length, whole
    engine.reset()
    same = bool(np.array_equal(engine.forward([1, 2, 3], dense).logits, before))
    return {"error": error, "same_afterwards": same, "length": length}


def _wiped(engine: Engine) -> dict[str, Any]:
    """A step whose numbers are not finite leaves nothing of them in the cache."""
    dense = engine.bundle.config.dense
    engine.reset()
    engine.forward([1, 2, 3], dense)
    values = {past: value for past, _, value in gpu(engine).cache.bindings()}
    key = values["past_key_values.0.key"]
    content = key.numpy().copy()
    content[:, :, 1] = np.nan
    key.update_inplace(content)
    try:
        engine.forward([4], dense)
        error = ""
    except NumericError as caught:
        error = str(caught)
    left = {
        past: bool(np.isfinite(value.numpy()[:, :, 3]).all()) for past, value in values.items() if "key_values" in past
    }
    return {"error": error, "finite": all(left.values())}


def _short_of_cache(engine: Engine) -> dict[str, Any]:
    """Error where the cache cannot grow, and the engine's state afterwards."""
    dense = engine.bundle.config.dense
    engine.reset()
    before = engine.forward(PROMPT, dense).logits
    memory = gpu(engine).cache._memory
    asked, memory._free_bytes = memory._free_bytes, lambda: 1000
    try:
        engine.forward(list(range(80)) * 2, dense)
        error = ""
    except ContextError as caught:
        error = str(caught)
    memory._free_bytes = asked
    try:
        engine.forward([1], dense)
        lost = ""
    except UsageError as caught:
        lost = str(caught)
    length = gpu(engine).length
    engine.reset()
    return {
        "error": error,
        "lost": lost,
        "length": length,
        "same": bool(np.array_equal(engine.forward(PROMPT, dense).logits, before)),
    }


def _on_the_cpu(engine: Engine) -> list[str]:
    """Messages about a graph with an operator that WebGPU lacks, about the same once more, and about one without."""
    info, node = helper.make_tensor_value_info, helper.make_node
    told = []
    lacking = node("BitShift", ["a", "a"], ["b"], direction="LEFT")
    for middle in (lacking, lacking, node("Add", ["a", "a"], ["b"])):
        nodes = [node("Cast", ["x"], ["a"], to=TensorProto.UINT32), middle, node("Cast", ["b"], ["y"], to=1)]
        graph = helper.make_graph(nodes, "g", [info("x", 1, [4])], [info("y", 1, [4])])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()
        options = engine.provider.options()
        options.add_provider_for_devices([engine.provider._ep_device], providers.webgpu.STRICT)
        with contextlib.redirect_stderr(io.StringIO()) as said:
            session = providers.strict_where_possible(
                lambda m=model, o=options: ort.InferenceSession(m, o, enable_fallback=0), options, "a graph"
            )
        session.run(None, {"x": np.arange(4, dtype=np.float32)})
        told.append(said.getvalue())
    return told


def _on_the_gpu() -> list[str]:
    """Objects of this process that hold a bundle's memory on a GPU."""
    return [type(found).__name__ for found in gc.get_objects() if type(found) is GpuEngine]


def _short_of_memory(folder: str) -> dict[str, Any]:
    """Errors where the driver reports 1000 free bytes: with the provider asked for, and under auto."""
    adapter, held = hardware.vulkan_gpus()[0], _on_the_gpu()
    short = hardware.Gpu(adapter.name, adapter.vendor_id, adapter.device_id, False, adapter.total_bytes, 1000)
    report = hardware.vulkan_gpus
    hardware.vulkan_gpus = lambda: [short]
    providers.webgpu.is_software = lambda entry: False  # type: ignore[assignment]
    providers.webgpu.gpu = lambda entry: short  # type: ignore[assignment]
    providers._gpu.cache_clear()
    try:
        Engine(Bundle.open(folder), provider="webgpu")
        error = ""
    except ProviderError as caught:
        error = str(caught)
    with contextlib.redirect_stderr(io.StringIO()) as told:
        chosen = Engine(Bundle.open(folder), provider="auto")
    hardware.vulkan_gpus = report
    left = _on_the_gpu()[len(held) :]
    return {"error": error, "auto": chosen.provider_name, "told": told.getvalue().splitlines(), "left": left}


def main() -> int:
    bundle = Bundle.open(sys.argv[1])
    try:
        engine = Engine(bundle, provider="webgpu")
    except ProviderError as error:
        print(error, file=sys.stderr)
        return NO_ADAPTER
    what = sys.argv[2:]
    result: dict[str, Any] = {}
    try:
        if "load" in what:
            result["load"] = _load(engine)
        if "greedy" in what:
            result["greedy"] = _greedy(engine)
        if "generated" in what:
            result["generated"] = _generated(sys.argv[1])
        if "on the cpu" in what:
            result["on the cpu"] = _on_the_cpu(engine)
        if "dims" in what:
            result["dims"] = _opened_by_dims(engine)
        if "captured" in what:
            result["captured"] = _captured(engine)
        if "steps" in what:
            result["steps"] = [logits.tolist() for logits in steps(engine, 60)]
        if "broken" in what:
            result["broken"] = _broken(engine)
        if "wiped" in what:
            result["wiped"] = _wiped(engine)
        if "cache" in what:
            result["cache"] = _short_of_cache(engine)
        if "memory" in what:
            result["memory"] = _short_of_memory(sys.argv[1])
    except SolError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    json.dump(result, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
