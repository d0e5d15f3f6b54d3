"""Measures decode and prefill on a GPU.

    python benchmarks speed.gpu BUNDLE [BUNDLE …] --provider cuda|webgpu [-o build/results/gpu.md]

Prints Markdown tables per bundle: prefill, a decode step of every action at several contexts, kernels beside function
bodies, attention alone, the time at a budget, and a last table of figures beside their targets. With -o, the tables of
a real GPU are also written to the file. The program needs the package, bundles and a GPU, but no network. It also
runs on the CPU and on a software adapter, for a try.

Steps take turns in a random order, and each figure is a median. Bandwidth is the bytes that a step reads by the
bundle's bytes model, divided by its time. It is compared with two limits: the measured rate at which the device reads
and writes large tensors, and the number of kernels that a step launches times the measured time of a launch.
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
from typing import Any, NamedTuple

import numpy as np

from report import write_page
from sol_rt import SolModel, __version__
from sol_rt.budget.cost.cost_table import MeasuredCost
from sol_rt.budget.cost.model import BytesCost
from sol_rt.budget.cost.profile import measure
from sol_rt.budget.dominated import describe
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import ModelDims
from sol_rt.engine import providers
from sol_rt.errors import ProviderError, SolError, UsageError
from sol_rt.evaluation.speed.bench import Bench, plan
from sol_rt.generate.native.engine import Engine
from sol_rt.store.home import find_bundle
from speed import gpu_attention, gpu_limits

import onnxruntime as ort

_ENGINES = ("kernels", "bodies")
_LEVELS = 64
"""Length in tokens at which logits are compared with the CPU's."""


class Figure(NamedTuple):
    """A row of the last table: name of the figure, its target, and the measured value."""

    name: str
    asked: str
    here: str


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
    limits = Limits(
        gpu_limits.copy_gb_per_second(provider), None if provider.gpu is None else gpu_limits.launch_us(provider)
    )
    launch = "" if limits.launch_us is None else f", and a launch takes {limits.launch_us:.2f} us"
    lines = [
        f"{provider.device_name} ({provider.name}), onnxruntime {ort.__version__}, sol_rt {__version__}. A pass that "
        f"reads and writes large tensors moves {limits.gb_per_second:.0f} GB/s{launch}. Medians of {args.repeats} "
        "steps; GB/s by the bundle's bytes model.",
        "",
    ]
    for path in args.bundles:
        try:
            lines += report(Bundle.open(find_bundle(str(path))), args, limits)
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
            write_page(args.output, text)
    return 0


@dataclass(frozen=True)
class Limits:
    """Limits of the device.

    Attributes:
        gb_per_second: 10^9 bytes per second, read and written.
        launch_us: microseconds of a small kernel that waits for the previous one; None on the CPU.
    """

    gb_per_second: float
    launch_us: float | None


def report(bundle: Bundle, args: argparse.Namespace, limits: Limits) -> Iterator[str]:
    """Measures one bundle and yields the lines of its report. Raises SolError."""
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
    made, memory = _engines(bundle, args)
    first = next(iter(made.values()))
    actions = _actions(bundle)
    figures = [*memory, _agreement(bundle, first)]
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
    yield from _decode_table(steps, contexts, actions, BytesCost(config), limits.gb_per_second)
    figures += _speeds(bundle, first, steps, limits)
    yield from _attention_table(made, config.model, args, figures)
    if weights := 0 if first.gpu is None else first.gpu.weight_bytes:
        stored = config.files[config.weights_file].bytes
        size = f"{weights / 1e6:.0f} MB"
        counts = " and ".join(f"{captured_graphs(engine)} ({name})" for name, engine in made.items())
        captured = f"graphs of steps that run as they were captured: {counts}"
        yield f"Weights of all variants on the device: {size}; the weights file: {stored / 1e6:.0f} MB; {captured}."
        yield ""
    yield from _dial(bundle, first, contexts, args, figures)
    yield "What is asked, and what was measured here:"
    yield ""
    yield from _table(["figure", "asked", "here"], [list(figure) for figure in figures])


def _engines(bundle: Bundle, args: argparse.Namespace) -> tuple[dict[str, Engine], list[Figure]]:
    """Opens an engine on kernels, if there are any, and one on function bodies, if these run beside kernels.

    Also measures the device memory of the first engine, with one variant and with all variants.
    """
    kernels = not args.bodies and _has_kernels(args.provider)
    made: dict[str, Engine] = {}
    figures: list[Figure] = []
    for name in _ENGINES if kernels else _ENGINES[1:]:
        gc.collect()
        try:
            provider = providers.choose(args.provider, device=args.device, native_ops=name == "kernels")
        except ProviderError as error:
            if not made:
                raise
            print(f"without function bodies: {error}", file=sys.stderr)
            continue
        before = gpu_limits.used_bytes(provider)
        made[name] = engine = Engine(bundle, provider=args.provider, device=args.device, native_ops=name == "kernels")
        if before is None or figures:
            continue
        sizes = []
        for variants in ([bundle.config.dense.variant], bundle.config.variants):
            for key in variants:
                engine.forward([1], Action.parse(f"k100-{key}"))
            sizes.append((gpu_limits.used_bytes(provider) or before) - before)
            engine.reset()
        each = f"{sizes[0] / 1e6:.0f} MB with the dense one, {sizes[1] / 1e6:.0f} MB with all {len(variants)}"
        ratio = f"{sizes[1] / max(sizes[0], 1):.3f} ×: {each}, after their steps, {captured_graphs(engine)} captured"
        figures.append(Figure("device memory of all variants over one", "at most 1.05 ×", ratio))
    return made, figures


def captured_graphs(engine: Engine) -> int:
    """Number of sessions whose commands the GPU recorded and repeats; 0 on the CPU."""
    return 0 if engine.gpu is None else engine.gpu.graphs.captured


def _agreement(bundle: Bundle, engine: Engine) -> Figure:
    """Largest difference of a variant's logits on the device from those on the CPU."""
    on_cpu = Engine(bundle, provider="cpu", native_ops=engine.native)
    ids = np.arange(_LEVELS, dtype=np.int64) % bundle.config.model.vocab_size
    errors, same = {}, 0
    for key in bundle.config.variants:
        action = Action.parse(f"k100-{key}")
        outcomes = []
        for one in (engine, on_cpu):
            one.reset()
            one.forward(ids[:-1], action)
            outcomes.append(one.forward(ids[-1:], action).logits[0].astype(np.float64))
            one.reset()
        got, expected = outcomes
        errors[key] = float(np.sqrt(np.mean((got - expected) ** 2) / np.mean(expected**2)))
        same += int(got.argmax() == expected.argmax())
    worst = max(errors, key=lambda key: errors[key])
    here = f"{errors[worst]:.2%} of the logits ({worst}) at most; {same} of {len(errors)} choose the same token"
    return Figure(f"every variant against the CPU, a step behind {_LEVELS - 1} tokens", "equal within rounding", here)


def _speeds(bundle: Bundle, engine: Engine, steps: dict[str, list[Step]], limits: Limits) -> Iterator[Figure]:
    """Compares kernels with function bodies, and dense steps with the limits of bandwidth and launches."""
    dense, bytes_cost = bundle.config.dense, BytesCost(bundle.config)
    times = {name: {(step.action, step.context): step.milliseconds for step in row} for name, row in steps.items()}
    if len(times) == 2:
        ratios = {at: times["bodies"][at] / ms for at, ms in times["kernels"].items()}
        least = min(ratios, key=lambda at: ratios[at])
        where = f"{least[0].tag} at {least[1]}"
        here = f"{statistics.median(ratios.values()):.2f} × in the middle, least {ratios[least]:.2f} × ({where})"
        yield Figure("kernels over bodies at decode", "at least 1.5 ×", here)
    mine = {step.context: step.milliseconds for step in steps[next(iter(steps))] if step.action == dense}
    shares = {at: bytes_cost.step(dense, at) / ms / 1e6 / limits.gb_per_second for at, ms in mine.items()}
    here = ", ".join(f"{share:.0%} at {at}" for at, share in shares.items())
    if limits.launch_us is not None:
        count = gpu_limits.launches(bundle, engine.provider, [dense])[dense]
        floor = count * limits.launch_us / 1e3
        here += (
            f"; {count} launches take at least {floor:.3f} ms, {floor / min(mine.values()):.0%} of the shortest step"
        )
    yield Figure("a dense step's bandwidth, of the pass", "60%, or the launches' limit", here)


def _attention_table(
    engines: dict[str, Engine], dims: ModelDims, args: argparse.Namespace, figures: list[Figure]
) -> Iterator[str]:
    """Measures attention alone, dense and sparse."""
    context, kept = args.attention
    yield f"Attention of one token behind {context}, us a layer ({gpu_attention.LAYERS} layers in turn):"
    yield ""
    rows = []
    for name, engine in engines.items():
        took = gpu_attention.measure(engine.provider, dims, context, kept)
        ratio = f"{took.dense / took.sparse:.2f} ×"
        rows.append([name, f"{took.dense:.1f}", f"{took.sparse:.1f}", ratio])
        if name == next(iter(engines)):
            figures.append(
                Figure(
                    f"attention with {kept} of {context} tokens kept, over dense", "at least 2 ×", f"{ratio} ({name})"
                )
            )
    yield from _table(["run by", "dense", f"{kept} tokens kept", "dense over sparse"], rows)


def _has_kernels(provider: str) -> bool:
    from sol_rt.ops import library_path

    return provider in ("cpu", "cuda") and library_path(provider) is not None


def _actions(bundle: Bundle) -> list[Action]:
    kv_densities = sorted({entry.action.kv_density for entry in bundle.config.actions} | {1.0}, reverse=True)
    variants = bundle.config.variants.values()
    return [
        Action(kv_density, variant.channel_density, variant.bits) for variant in variants for kv_density in kv_densities
    ]


def _fill(engine: Engine, context: int, prefill: int) -> float:
    """Fills the cache to `context` tokens. Returns tokens per second of a further prefill, which is then dropped."""
    dense, vocabulary = engine.bundle.config.dense, engine.bundle.config.model.vocab_size
    tokens = np.arange(context + prefill, dtype=np.int64) % vocabulary
    engine.forward(tokens[engine.length : context], dense)
    engine.forward(tokens[context:], dense)  # untimed: the cache grows, and the provider compiles shaders
    times = []
    for _ in range(3):
        engine.truncate(context)
        start = time.perf_counter()
        engine.forward(tokens[context:], dense)
        times.append(time.perf_counter() - start)
    engine.truncate(context)
    return prefill / min(times)


def _decode(engines: dict[str, Engine], actions: Sequence[Action], context: int, repeats: int) -> dict[str, list[Step]]:
    """Times every action on every engine, in turn."""
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


def _dial(
    bundle: Bundle, engine: Engine, contexts: Sequence[int], args: argparse.Namespace, figures: list[Figure]
) -> Iterator[str]:
    """Measures the time at budget 0.4 over the time at 1.0, with costs that are measured first."""
    result = measure(engine, bundle, contexts, args.repeats, lambda *_: None, seconds=args.seconds)
    cost = MeasuredCost(bundle.config, result.table)
    how: dict[str, Any] = {"provider": engine.provider_name, "device": engine.provider.device}
    model = SolModel.from_pretrained(bundle, **how, native_ops=engine.native, cost=cost)
    if model.dominated:
        yield describe(model.dominated, engine.provider_name)
        yield ""
    depth = contexts[0]
    if depth + args.tokens > bundle.config.model.max_context:
        return
    planned = plan(model, n_prompt=[0], n_gen=[args.tokens], n_depth=[depth], budgets=[1.0, 0.4])
    rows = Bench(model).run_in_turn(planned.tests, 5)
    times = {row.test.budget: statistics.median(row.samples_ns) for row in rows}
    achieved = {row.test.budget: row.achieved_budget for row in rows if row.achieved_budget is not None}
    ratio = times[0.4] / times[1.0]
    figures.append(Figure("time at budget 0.4 over 1.0", "0.36 to 0.46", f"{ratio:.3f} behind {depth}"))
    yield (
        f"Budget 0.4 (schedule {rows[0].test.schedule}) takes {ratio:.3f} of the time of budget 1.0; "
        f"by the measured costs {achieved[0.4]:.3f}. {args.tokens} tokens behind {depth}, medians of 5 runs in turn."
    )
    if cost.policy():
        dense = cost.dense(depth)
        host = times[0.4] / args.tokens / 1e6 - (achieved[0.4] * dense - cost.policy())
        shares = f"{cost.policy() / dense:.1%}; the rest of a token, by the measured costs, {host / dense:.1%}"
        yield f"A run of the policy: {cost.policy():.3f} ms on the CPU; of the dense step {shares}."
        figures.append(Figure("the policy's step, of the dense one", "hidden, or under 3%", shares))
    yield ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def numbers(text: str) -> list[int]:
    """Reads positive numbers separated by commas."""
    found = [int(part) for part in text.split(",")]
    if min(found) < 1:
        raise ValueError
    return found


def tokens_and_kept(text: str) -> tuple[int, int]:
    """Reads TOKENS:KEPT, tokens in the cache and a smaller number of tokens to read."""
    tokens, kept = (int(part) for part in text.split(":"))
    if not 0 < kept < tokens:
        raise ValueError
    return tokens, kept


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--provider", choices=("cuda", "webgpu", "cpu"), required=True)
    parser.add_argument("--device", type=int, default=0)
    parser.add_argument("--bodies", action="store_true", help="measure only function bodies, not the kernels")
    parser.add_argument(
        "--contexts", type=numbers, default=[512, 4096, 16384], metavar="N,N", help="tokens in the cache"
    )
    parser.add_argument(
        "--attention",
        type=tokens_and_kept,
        default=(16384, 1024),
        metavar="TOKENS:KEPT",
        help="for attention alone: tokens in the cache, and tokens that sparse attention reads",
    )
    parser.add_argument("--prefill", type=int, default=512, help="tokens per prefill")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--tokens", type=int, default=128, help="tokens per run under a budget")
    parser.add_argument("--seconds", type=float, default=120, help="time limit of a bundle's profile")
    parser.add_argument("-o", "--output", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
