"""Decode and prefill on a GPU, as tables: every variant at several contexts, kernels beside function bodies, the dial.

    python benchmarks/gpu.py BUNDLE [BUNDLE …] --provider cuda|webgpu [-o docs/results/gpu.md]

Needs the package, bundles and a GPU, no network. Steps take turns in an order that changes, and of every step's times
the median counts. Bandwidth is what the bundle's bytes model says that a step reads, over its time; its limit is a
measured pass that reads and writes large tensors on the same device. On the CPU and on a software adapter it runs as
well, to try it, and writes no file.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

from sol_rt import SolModel, providers
from sol_rt._version import __version__
from sol_rt.actions import Action
from sol_rt.bench import Bench, plan
from sol_rt.bundle import Bundle
from sol_rt.calibrate import measure
from sol_rt.cost import BytesCost, CalibratedCost
from sol_rt.engine import Engine
from sol_rt.errors import SolError, UsageError
from sol_rt.hardware import free_memory_bytes
from sol_rt.home import find_bundle
from sol_rt.paying import describe
from sol_rt.providers import Provider

_COPY_BYTES = 512 << 20
_LEAST_COPY_BYTES = 8 << 20


@dataclass(frozen=True)
class Step:
    """Median milliseconds of decode steps of one action with `context` tokens in the cache."""

    action: Action
    context: int
    milliseconds: float


def main() -> int:
    args = _arguments()
    try:
        provider = providers.choose(args.provider, device=args.device, native_ops=not args.bodies)
    except SolError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    limit = copy_gb_per_second(provider)
    lines = [
        f"{provider.device_name} ({provider.name}), onnxruntime {ort.__version__}, sol_rt {__version__}. A pass that "
        f"reads and writes large tensors moves {limit:.0f} GB/s. Medians of {args.repeats} steps; "
        "GB/s by the bundle's bytes model.",
        "",
    ]
    for path in args.bundles:
        try:
            lines += report(Bundle.open(find_bundle(str(path))), args, limit)
        except SolError as error:
            print(f"error: {error}", file=sys.stderr)
            return error.exit_code
        gc.collect()
    text = "\n".join(lines) + "\n"
    print(text)
    if args.output is not None:
        if provider.gpu is None or provider.software:
            print(f"{args.output}: not written, {provider.device_name} is no GPU", file=sys.stderr)
        else:
            _replace_tables(args.output, text)
    return 0


def report(bundle: Bundle, args: argparse.Namespace, limit: float) -> Iterator[str]:
    """The lines of one bundle. Raises SolError."""
    config = bundle.config
    contexts = [context for context in sorted(args.contexts) if context + args.prefill < config.model.max_context]
    left_out = sorted(set(args.contexts) - set(contexts))
    yield f"## {config.model.name}"
    yield ""
    if left_out:
        yield f"Left out, beyond the context of {config.model.max_context}: {', '.join(map(str, left_out))}."
        yield ""
    if not contexts:
        raise UsageError(f"{bundle.path}: no context of {args.contexts} and {args.prefill} more fit the model's own")
    engines = {"kernels": True, "bodies": False}
    if args.bodies or not _has_kernels(args.provider):
        engines = {"bodies": False}
    made = {
        name: Engine(bundle, provider=args.provider, device=args.device, native_ops=native)
        for name, native in engines.items()
    }
    actions = _actions(bundle)
    bytes_cost = BytesCost(config)
    steps: dict[str, list[Step]] = {name: [] for name in made}
    prefill: dict[tuple[str, int], float] = {}
    for context in contexts:
        for name, engine in made.items():
            prefill[name, context] = _fill(engine, context, args.prefill)
        for name, row in _decode(made, actions, context, args.repeats).items():
            steps[name] += row
        print(f"{config.model.name}: {context} done", file=sys.stderr)
    yield f"Prefill of {args.prefill} tokens, dense, tokens a second:"
    yield ""
    yield from _prefill_table(made, contexts, prefill)
    yield from _decode_table(steps, contexts, actions, bytes_cost, limit)
    first = next(iter(made.values()))
    if first.device_weight_bytes:
        stored = config.files[config.weights_file].bytes
        size = f"{first.device_weight_bytes / 1e6:.0f} MB"
        captured = f"{first.captured_graphs} graphs of steps run as they were captured"
        yield f"Weights of all variants on the device: {size}; the weights file: {stored / 1e6:.0f} MB; {captured}."
        yield ""
    yield from _dial(bundle, first, contexts, args)


def _has_kernels(provider: str) -> bool:
    from sol_rt.ops import library_path

    return provider in ("cpu", "cuda") and library_path(provider) is not None


def _actions(bundle: Bundle) -> list[Action]:
    keeps = sorted({entry.action.keep for entry in bundle.config.actions} | {100}, reverse=True)
    variants = bundle.config.variants.values()
    return [Action(keep, variant.prune, variant.bits) for variant in variants for keep in keeps]


def _fill(engine: Engine, context: int, prefill: int) -> float:
    """Brings the cache to `context` tokens; returns tokens a second of a prefill on top, which is taken back."""
    dense, vocabulary = engine.bundle.config.dense, engine.bundle.config.model.vocab_size
    tokens = np.arange(context + prefill, dtype=np.int64) % vocabulary
    engine.forward(tokens[engine.length : context], dense)
    engine.forward(tokens[context:], dense)  # grows the cache, and makes shaders
    times = []
    for _ in range(3):
        engine.truncate(context)
        start = time.perf_counter()
        engine.forward(tokens[context:], dense)
        times.append(time.perf_counter() - start)
    engine.truncate(context)
    return prefill / min(times)


def _decode(engines: dict[str, Engine], actions: Sequence[Action], context: int, repeats: int) -> dict[str, list[Step]]:
    """Times every action on every engine in turns."""
    times: dict[tuple[str, Action], list[float]] = {(name, action): [] for name in engines for action in actions}
    order = np.random.default_rng(0)
    pairs = list(times)
    for repeat in range(repeats + 2):
        for index in order.permutation(len(pairs)):
            name, action = pairs[index]
            engine = engines[name]
            engine.truncate(context)
            start = time.perf_counter()
            engine.forward([1], action)
            if repeat >= 2:
                times[name, action].append((time.perf_counter() - start) * 1e3)
    for engine in engines.values():
        engine.truncate(context)
    return {
        name: [Step(action, context, statistics.median(times[name, action])) for action in actions] for name in engines
    }


def _prefill_table(
    engines: dict[str, Engine], contexts: Sequence[int], prefill: dict[tuple[str, int], float]
) -> Iterator[str]:
    yield from _table(
        ["", *(f"behind {context}" for context in contexts)],
        [[name, *(f"{prefill[name, context]:.0f}" for context in contexts)] for name in engines],
    )


def _decode_table(
    steps: dict[str, list[Step]],
    contexts: Sequence[int],
    actions: Sequence[Action],
    bytes_cost: BytesCost,
    limit: float,
) -> Iterator[str]:
    found = {(name, step.action, step.context): step.milliseconds for name, row in steps.items() for step in row}
    names = list(steps)
    yield "A decode step, ms; GB/s (share of the pass):"
    yield ""
    rows = []
    for action in actions:
        for name in names:
            cells = []
            for context in contexts:
                ms = found[name, action, context]
                rate = bytes_cost.step(action, context) / ms / 1e6
                ratio = f", {found['bodies', action, context] / ms:.2f} × bodies" if name == "kernels" else ""
                cells.append(f"{ms:.3f}; {rate:.1f} ({rate / limit:.0%}){ratio}")
            rows.append([action.tag, name, *cells])
    yield from _table(["action", "run by", *(f"at {context}" for context in contexts)], rows)


def _dial(bundle: Bundle, engine: Engine, contexts: Sequence[int], args: argparse.Namespace) -> Iterator[str]:
    """Time at budget 0.4 over time at 1.0, with costs calibrated here and now."""
    result = measure(engine, bundle, contexts, args.repeats, lambda *_: None, seconds=args.seconds)
    cost = CalibratedCost(bundle.config, result.table)
    model = SolModel(engine, cost)
    if model.unpaying:
        yield describe(model.unpaying, engine.provider_name)
        yield ""
    depth = contexts[0]
    if depth + args.tokens > bundle.config.model.max_context:
        return
    planned = plan(model, n_prompt=[0], n_gen=[args.tokens], n_depth=[depth], budgets=[1.0, 0.4])
    rows = Bench(model).run_in_turn(planned.tests, 5)
    times = {row.test.budget: statistics.median(row.samples_ns) for row in rows}
    achieved = {row.test.budget: row.achieved_budget for row in rows}
    yield (
        f"Budget 0.4 (schedule {rows[0].test.schedule}) takes {times[0.4] / times[1.0]:.3f} of the time of budget 1.0; "
        f"by the calibrated costs {achieved[0.4]:.3f}. {args.tokens} tokens behind {depth}, medians of 5 runs in turn."
    )
    if cost.policy():
        share = cost.policy() / cost.dense(depth)
        yield f"A run of the policy: {cost.policy():.3f} ms on the CPU, {share:.1%} of the dense step."
    yield ""


def copy_gb_per_second(provider: Provider) -> float:
    """10^9 bytes a second that y = -x over large tensors reads and writes on the provider's device."""
    size = _COPY_BYTES
    free = free_memory_bytes() if provider.gpu is None else provider.gpu.free_bytes
    if provider.gpu is None or provider.software:
        size = 64 << 20
    if free is not None:
        size = max(_LEAST_COPY_BYTES, min(size, free // 8))
    count = size // 4
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y"])],
        "copy",
        [info("x", TensorProto.FLOAT, [count])],
        [info("y", TensorProto.FLOAT, [count])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()
    session = provider._session(model, provider.options())
    binding = session.io_binding()
    zeros = np.zeros(count, np.float32)
    if provider.gpu is None:
        x, y = (ort.OrtValue.ortvalue_from_numpy(array) for array in (zeros, zeros.copy()))
    else:
        memory = provider.memory()
        x, y = memory.place(zeros), memory.place(zeros)
    binding.bind_ortvalue_input("x", x)
    binding.bind_ortvalue_output("y", y)

    def passes(number: int) -> float:
        start = time.perf_counter()
        for _ in range(number):
            session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        if provider.name == "webgpu":
            _read_one(provider, y)
        return time.perf_counter() - start

    passes(2)
    few, many = (min(passes(number) for _ in range(3)) for number in (2, 12))
    return 2 * size * 10 / max(many - few, 1e-9) / 1e9


def _read_one(provider: Provider, value: ort.OrtValue) -> None:
    """Waits for the device: WebGPU queues runs, and only reading makes them finish. What is read is small, the wait is
    in both measurements."""
    target = provider.memory().empty((1,), np.float32)
    host = ort.OrtValue.ortvalue_from_numpy(np.zeros(1, np.float32))
    del value
    provider.memory().read([target], [host])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def _replace_tables(path: Path, text: str) -> None:
    """Puts the tables behind the line that begins them, and leaves what stands before it."""
    mark = "<!-- tables -->"
    before = path.read_text(encoding="utf-8").partition(mark)[0] if path.is_file() else "# On GPUs\n\n"
    path.write_text(f"{before}{mark}\n\n{text}", encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--provider", choices=("cuda", "webgpu", "cpu"), required=True)
    parser.add_argument("--device", type=int, default=0)
    parser.add_argument("--bodies", action="store_true", help="function bodies alone, where there are kernels too")
    parser.add_argument(
        "--contexts", type=lambda text: [int(part) for part in text.split(",")], default=[512, 4096, 16384]
    )
    parser.add_argument("--prefill", type=int, default=512, help="tokens of a prefill")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--tokens", type=int, default=128, help="of the runs under a budget")
    parser.add_argument("--seconds", type=float, default=120, help="for the calibration of a bundle")
    parser.add_argument("-o", "--output", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
