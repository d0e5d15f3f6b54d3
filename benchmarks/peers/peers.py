"""Compares the speed of sol_rt and its peers on the same weights, threads and prompt, all measured in turn in one run.

    python benchmarks peers.peers smollm2-135m -o build/results/peers-smollm2-135m.md
    python benchmarks peers.peers FILE.gguf --peers llama.cpp,genai --depths 512

Prints a Markdown page: prompts of 512 tokens (pp512), and greedy decoding after a prompt of a given depth (tg64 @
d512), in tokens per second and as ratios. sol_rt runs the prompt as its default dial does, dense, and under each
action's variant, which takes `sol-rt --prefill VARIANT`. With a text (-f), each row of decoding also has the perplexity
of tokens after that depth. llama.cpp is measured with flash attention, its default, and without (-fa 0). -o also writes
the figures as .json. `make peers` first makes the environments, ENVIRONMENTS/PEER/bin/python.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from peers.peer_models import bundle_of, model_of
from peers.peer_report import Test, as_json, tables
from peers.workers.client import WorkerError, WorkerProcess, engines_of
from report import facts, machine, rotated, write_page
from sol_rt.atomic_write import write_text
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import SolConfig
from sol_rt.errors import SolError, UsageError
from sol_rt.evaluation.quality.perplexity import text_windows
from sol_rt.store.pull import bundle_name, resolve

PEERS = ("llama.cpp", "genai", "optimum")
PROMPT = 512
DEFAULT = "default"
"""Name of sol_rt's column, and of the request, of a prompt that the default dial runs."""
DEEP = 4096  # from this depth on: half the repetitions and steps, and one more row with sparse attention
SPARSE_TOKENS = 512


@dataclass(frozen=True)
class Entry:
    """A column of a test: an engine, its action if the engine is sol_rt, and a request in place of the test's."""

    worker: WorkerProcess
    tag: str | None = None
    do: str | None = None

    @property
    def name(self) -> str:
        return self.do or self.tag or self.worker.name


def sparse_action(depth: int, page_size: int) -> Action:
    """The cheapest 4-bit action whose old pages after `depth` tokens hold `SPARSE_TOKENS` tokens or more."""
    actions = (Action(share / 100, 1.0, 4) for share in range(1, 101))
    return next(action for action in actions if action.pages(depth, page_size) * page_size >= SPARSE_TOKENS)


def measure(
    entries: list[Entry], request: Mapping[str, object], tokens: int, repetitions: int
) -> dict[str, list[float]]:
    """Measures tokens/s of all entries in turn: one turn of warm-up, then `repetitions` turns.

    Each turn starts with another entry.
    """
    rates: dict[str, list[float]] = {entry.name: [] for entry in entries}
    for turn in range(repetitions + 1):
        for entry in rotated(entries, turn):
            asked = {**request, "action": entry.tag} | ({"do": entry.do} if entry.do else {})
            rate = tokens * 1e3 / float(entry.worker.ask(**asked)["ms"])
            if turn:
                rates[entry.name].append(rate)
    return rates


def tests(
    own: WorkerProcess,
    peers: list[WorkerProcess],
    actions: list[Action],
    bundle: Bundle,
    args: argparse.Namespace,
) -> Iterator[Test]:
    """Measures the prompt by default, dense and under each action's variant, then decoding at each depth."""
    longest = max([PROMPT, *args.depths])
    words = np.random.default_rng(0).integers(0, bundle.config.model.vocab_size, longest).tolist()
    others = [Entry(peer) for peer in peers]

    def test(
        name: str, tags: list[str], rates: dict[str, list[float]], notes: dict[str, str] | None = None, depth: int = 0
    ) -> Test:
        peer_rates = {peer.name: rates[peer.name] for peer in peers}
        return Test(name, {tag: rates[tag] for tag in tags}, peer_rates, notes or {}, depth)

    tags, dense = [action.tag for action in actions], bundle.config.dense
    prompts = dict.fromkeys(replace(action, kv_density=1.0) for action in (*actions, dense))
    request: dict[str, object] = {"do": "prompt", "tokens": words[:PROMPT]}
    chosen = own.ask(**request | {"do": DEFAULT})["variant"]
    entries = [Entry(own, do=DEFAULT), *(Entry(own, action.tag) for action in prompts), *others]
    rates = measure(entries, request, PROMPT, args.repetitions)
    notes = {action.tag: f"(`--prefill {action.variant}`)" for action in prompts if action != dense}
    rows = [DEFAULT, *(action.tag for action in prompts)]
    yield test(f"pp{PROMPT}", rows, rates, {DEFAULT: f"(prompt by `{chosen}`)", **notes})
    for depth in args.depths:
        deep = depth >= DEEP
        count = max(1, args.count // 2) if deep else args.count
        here = _with_sparse(actions, depth, bundle) if deep else tags
        for worker in (own, *peers):
            worker.ask(do="prompt", tokens=words[:depth], room=count)
        entries = [Entry(own, tag) for tag in here] + others
        repetitions = _deep(args.repetitions) if deep else args.repetitions
        rates = measure(entries, {"do": "decode", "count": count}, count, repetitions)
        yield test(f"tg{count} @ d{depth}", here, rates, depth=depth)


def losses(
    own: WorkerProcess, peers: list[WorkerProcess], tags: list[str], windows: list[list[int]], context: int
) -> dict[str, list[float]]:
    """Losses in nats of the tokens after the first `context` of every window, by action tag and by peer.

    An action runs its steps after a dense prompt, as in generation; a peer runs all tokens with its one quantization.
    Of a peer's settings the default alone is scored.
    """
    found: dict[str, list[float]] = {}
    defaults = {engines_of(peer)[0] for peer in PEERS}
    for window in windows:
        asked: dict[str, object] = {"do": "nll", "windows": [window], "context": context}
        for tag, nats in own.ask(**asked, actions=tags)["nll"].items():
            found.setdefault(tag, []).extend(nats)
        for peer in [peer for peer in peers if peer.name in defaults]:
            found.setdefault(peer.name, []).extend(peer.ask(**asked)["nll"][0])
        print(f"scored {len(found[tags[0]])} tokens after {context}", file=sys.stderr)
    return found


def _with_sparse(actions: list[Action], depth: int, bundle: Bundle) -> list[str]:
    """Tags of the actions, and of the sparse action if the bundle has its variant."""
    sparse = sparse_action(depth, bundle.config.kv.page_size)
    more = [sparse] if sparse.variant in bundle.config.variants else []
    return list(dict.fromkeys(action.tag for action in actions + more))


def _deep(repetitions: int) -> int:
    return max(3, repetitions // 2)


def report(
    own: WorkerProcess,
    others: list[WorkerProcess],
    results: list[Test],
    config: SolConfig,
    args: argparse.Namespace,
) -> str:
    """The whole Markdown page: command, machine and engines, the tables, and notes on the rows."""
    peers = [worker.name for worker in others]
    depths = ",".join(map(str, args.depths))
    text = f" TEXT={args.file.name}" if args.file else ""
    command = f"make peers MODEL={Path(args.model).name} PEERS={','.join(args.peers)} DEPTHS={depths}{text}"
    actions = ",".join(action.tag for action in args.actions)
    options = f"-r {args.repetitions} -n {args.count} --threads {args.threads} --actions {actions}"
    options += f" --windows {args.windows} --scored {args.scored}" if args.file else ""
    about = "\n".join(f"- {worker.name}: {worker.version}; {worker.settings}" for worker in (own, *others))
    decoding = [test for test in results if test.depth]
    sparse = [(test, tag) for test in decoding for tag in test.own if not tag.startswith("k100")]
    notes = "".join(f"\n{_sparse_note(test, tag, config.kv.page_size)}" for test, tag in sparse)
    fewer = f" ({_deep(args.repetitions)} from {DEEP} tokens on)" if max(args.depths, default=0) >= DEEP else ""
    return f"""# {bundle_name(args.model)} beside its peers, {time.strftime("%Y-%m-%d")}

```
{command} PEERS_ARGS="{options}"
```

{machine()}, {args.threads} threads, Python {platform.python_version()}. Batch 1, greedy, one prompt for all.

{about}

{tables(results, peers, config.dense.tag)}

Median [quartiles] over {args.repetitions} repetitions{fewer}, all engines in turn in each, after a turn of warm-up;
ratios are taken within a repetition. `pp{PROMPT}`: a prompt of {PROMPT} tokens into an empty cache, last logits
included. `default` is the time to the first token of a generation without options; a prompt under an action is that
of `sol-rt --prefill VARIANT`. `tg{args.count} @ d512`: {args.count} decode steps after a prompt of 512 tokens, which
is not timed. A step of sol_rt is a token of the loop that apps run, its text included, read from Python. The best
peer of a row is the one with the highest median. While one engine is measured, the processes of the others are
stopped. Weights: sol_rt's bundle and the models of genai and optimum are made of the file that llama.cpp reads; genai
and optimum get it in float32 and quantize it on their own.{_scored_note(args)}{notes}
"""


def _scored_note(args: argparse.Namespace) -> str:
    if args.file is None:
        return ""
    return f""" Perplexity: of {args.windows} windows of
{args.file.name} the {args.scored} tokens after the depth, in brackets the rise over the dense action, ± one standard
error of paired losses. An action's prompt is dense."""


def _sparse_note(test: Test, tag: str, page_size: int) -> str:
    depth, action = test.depth, Action.parse(tag)
    pages, old = (each.pages(depth, page_size) for each in (action, replace(action, kv_density=1.0)))
    reads = f"reads {pages} of {old} old pages of {page_size} tokens, the newest page and the first tokens"
    return f"\n`{tag}` after {depth} tokens {reads}."


def positive(text: str) -> int:
    """Reads a whole number of 1 or more. Raises ArgumentTypeError."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number of 1 or more")
    return int(text)


def positives(text: str) -> list[int]:
    """Reads whole numbers of 1 or more, separated by commas. Raises ArgumentTypeError."""
    return [positive(part) for part in text.split(",")]


def _peers(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in PEERS]:
        raise argparse.ArgumentTypeError(f"got {unknown[0]!r}, expected some of {', '.join(PEERS)}")
    return names


def action_list(text: str) -> list[Action]:
    """Reads action tags separated by commas and drops duplicates. Raises ArgumentTypeError."""
    try:
        return list(dict.fromkeys(Action.parse(tag.strip()) for tag in text.split(",")))
    except SolError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="alias, .gguf or checkpoint folder")
    parser.add_argument("--peers", type=_peers, default=list(PEERS), help="names separated by commas")
    parser.add_argument(
        "--environments", type=Path, default=Path(".venv-peers"), help="folder with one environment per peer"
    )
    parser.add_argument(
        "--depths", type=positives, default=[64, 512, 2048, 8000], help="prompt lengths in tokens before the steps"
    )
    parser.add_argument(
        "--actions", type=action_list, default="k100-s100-q4,k100-s100-q8", help="tags of sol_rt's actions"
    )
    parser.add_argument("-f", "--file", type=Path, help="text to measure perplexity on; default: none is measured")
    parser.add_argument("--windows", type=positive, default=8, help="windows of the text to score at each depth")
    parser.add_argument("--scored", type=positive, default=128, help="tokens to score in each window, after the depth")
    parser.add_argument("-n", "--count", type=positive, default=64, help="decode steps per repetition")
    parser.add_argument("-r", "--repetitions", type=positive, default=10)
    parser.add_argument("-t", "--threads", type=positive, default=os.cpu_count() or 1)
    parser.add_argument("-o", "--output", type=Path, help="file for the page; its figures go beside it as .json")
    args = parser.parse_args()
    try:
        for page, figures in run(args):
            if args.output:
                write_page(args.output, page)
                write_text(args.output.with_suffix(".json"), json.dumps(figures, indent=1) + "\n")
    except (SolError, WorkerError) as error:
        sys.exit(f"error: {error}")
    print(page, end="")


def run(args: argparse.Namespace) -> Iterator[tuple[str, dict[str, object]]]:
    """Makes missing models and measures. Yields the page and its figures: of speeds, then after each depth's scores.

    Raises SolError, WorkerError.
    """
    checkpoint, name = resolve(args.model, lambda step, done, total: None)
    bundle = Bundle.open(bundle_of(args.model, name))
    if foreign := [action for action in args.actions if action.variant not in bundle.config.variants]:
        has = ", ".join(bundle.config.variants)
        raise UsageError(f"--actions {foreign[0].tag}: no variant {foreign[0].variant} in this bundle; it has {has}")
    models = args.environments / "models" / name
    models.mkdir(parents=True, exist_ok=True)
    pythons = {peer: args.environments / peer / "bin" / "python" for peer in args.peers}
    if missing := [python for python in pythons.values() if not python.exists()]:
        raise UsageError(f"{missing[0]}: not there, expected a peer's environment; `make peers` makes them")
    files = {peer: model_of(peer, checkpoint, python, models) for peer, python in pythons.items()}
    limit = bundle.config.model.max_context - max(args.count, args.scored if args.file else 0) - 2
    for depth in [depth for depth in args.depths if depth > limit]:
        print(f"depth {depth} is left out: the model's context ends before it", file=sys.stderr)
        args.depths.remove(depth)
    text = None if args.file is None else read_text(args.file)
    cuts = (
        {}
        if text is None
        else {depth: windows_of(text, bundle, depth + 1 + args.scored, args.windows) for depth in args.depths}
    )
    with contextlib.ExitStack() as stack:

        def start(engine: str, python: Path | str, model: Path) -> WorkerProcess:
            return stack.enter_context(WorkerProcess.start(engine, python, model, args.threads))

        own = start("sol_rt", sys.executable, bundle.path)
        peers = [start(engine, pythons[peer], files[peer]) for peer in args.peers for engine in engines_of(peer)]

        def found() -> tuple[str, dict[str, object]]:
            page = report(own, peers, results, bundle.config, args)
            about = facts("sol_rt.peers", name, args.file, args.threads)
            return page, {**about, "tests": [as_json(test, bundle.config.dense.tag) for test in results]}

        results = []
        for test in tests(own, peers, args.actions, bundle, args):
            print(f"measured {test.name}", file=sys.stderr)
            results.append(test)
        yield found()
        for place, test in enumerate(results):
            if windows := cuts.get(test.depth):
                tags = list(dict.fromkeys([bundle.config.dense.tag, *test.own]))
                results[place] = replace(test, losses=losses(own, peers, tags, windows, test.depth))
                yield found()


def read_text(file: Path) -> str:
    """Reads a text. Raises UsageError."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: {error}") from None


def windows_of(text: str, bundle: Bundle, size: int, count: int) -> list[list[int]]:
    """The text's first windows of `size` tokens. Raises UsageError if the text is too short."""
    return text_windows(text, bundle.tokenizer(), bundle.config.model, size, count)


if __name__ == "__main__":
    main()
