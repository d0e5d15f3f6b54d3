"""Compares `sol-rt serve` with llama.cpp's server: same weights, prompts, numbers of tokens and load generator.

    python benchmarks serve.servers smollm2-135m --clients 1,2,4,8,16 -o build/results/servers-smollm2-135m.md

All servers are asked in turn within each repetition, each a process of its own; those that wait are stopped. Rows of
sol_rt: dense (budget 1), at its default promise of loss, and dense where load lowers the budgets. The overhead is
dense's time over that of the core alone, which gives the same answers in rounds of as many sessions.
Times and losses are defined as in serve.load. No answer ends early: the end of the text has a bias. -o also writes the
figures as .json.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from peers.peer_models import bundle_of
from peers.peers import positive, positives
from peers.workers.client import WorkerError, WorkerProcess
from report import facts, machine, rotated, write_page
from serve.load import Seen, load, questions, started, summary, times
from sol_rt.bundle.bundle import Bundle
from sol_rt.errors import SolError, UsageError
from sol_rt.generate.model import SolModel
from sol_rt.store.pull import resolve

FORM = "sol_rt.servers"
SERVER = Path(__file__).parents[1] / "peers/workers/llama_cpp_server.py"
DENSE, CORE, PEER = "sol_rt, dense", "core alone, dense", "llama.cpp"
Row = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """A column of the comparison.

    Attributes:
        name: in the tables.
        address: of its server.
        process: its server.
        fields: further fields of each request.
    """

    name: str
    address: str
    process: subprocess.Popen[str]
    fields: dict[str, Any] = field(default_factory=dict)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="alias or .gguf")
    parser.add_argument("--environments", type=Path, default=Path(".venv-peers"), help="folder with xllamacpp's")
    parser.add_argument("--clients", type=positives, default=[1, 2, 4, 8, 16])
    parser.add_argument("-n", "--count", type=positive, default=48, help="tokens of an answer")
    parser.add_argument("-r", "--repetitions", type=positive, default=3)
    parser.add_argument("--least", type=positive, default=4, help="answers of a repetition, if there are fewer clients")
    parser.add_argument("--target-latency", type=float, default=60.0, help="milliseconds between tokens, for load")
    parser.add_argument("-t", "--threads", type=positive, default=os.cpu_count() or 1)
    parser.add_argument("-o", "--output", type=Path, help="file for the page; its figures go beside it as .json")
    args = parser.parse_args()
    try:
        page, figures = run(args)
    except (SolError, WorkerError) as error:
        sys.exit(f"error: {error}")
    if args.output:
        write_page(args.output, page)
        write_page(args.output.with_suffix(".json"), json.dumps(figures, indent=1) + "\n")
    print(page, end="")


def run(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Measures all. Returns the page and the figures. Raises SolError, WorkerError."""
    checkpoint, name = resolve(args.model, lambda step, done, total: None)
    python = args.environments / "xllamacpp" / "bin" / "python"
    if checkpoint.suffix != ".gguf" or not python.exists():
        raise UsageError(f"got {checkpoint.name} and {python}, expected a .gguf and an environment; see `make servers`")
    bundle = Bundle.open(bundle_of(args.model, name))
    model = SolModel.from_pretrained(bundle.path, provider="cpu", measure_costs=False)
    bias = {str(token): -100 for token in bundle.config.model.eos_token_ids}
    own = [sys.executable, "-m", "sol_rt", "serve", str(bundle.path), "--port", "0", "--threads", str(args.threads)]
    own += ["--sessions", str(max(args.clients))]
    peer = [str(python), str(SERVER), str(checkpoint), "--threads", str(args.threads)]
    peer += ["--slots", str(max(args.clients))]
    with ExitStack() as stack:

        def start(*command: str) -> tuple[str, subprocess.Popen[str]]:
            return stack.enter_context(_stopped(command))

        asked = [
            Asked(DENSE, *start(*own), {"budget": 1.0}),
            Asked("sol_rt, default", *start(*own)),
            Asked("sol_rt, load", *start(*own, "--target-latency", str(args.target_latency)), {"budget": 1.0}),
            Asked(PEER, *start(*peer)),
        ]
        core = stack.enter_context(WorkerProcess.start("sol_rt", sys.executable, bundle.path, args.threads))
        rows = list(measure(args, asked, core, model, bias))
    figures = facts(FORM, name, checkpoint, args.threads) | {"settings": settings(args), "rows": rows}
    return page(args, name, checkpoint, rows), figures


@contextmanager
def _stopped(command: Sequence[str]) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server that runs only while it is asked."""
    with started(command) as (address, process):
        process.send_signal(signal.SIGSTOP)
        try:
            yield address, process
        finally:
            process.send_signal(signal.SIGCONT)


def measure(
    args: argparse.Namespace,
    asked: Sequence[Asked],
    core: WorkerProcess,
    model: SolModel,
    bias: dict[str, int],
) -> Iterator[Row]:
    """The rows: for each number of clients one of each server and one of the core, whose prompts the model encodes.

    No prompt comes twice: caches have the beginning that all share.
    """
    first = 0
    for clients in args.clients:
        answers = max(clients, args.least)
        seen: dict[str, list[Seen]] = {each.name: [] for each in asked}
        alone: list[float] = []
        for turn in range(args.repetitions + 1):  # the first one warms up
            texts = list(itertools.islice(questions(first), answers))
            first += answers
            for each in rotated([*asked, None], turn):
                if each is None:
                    prompts = [model.encode([{"role": "user", "content": text}]) for text in texts]
                    how = {"count": args.count, "sessions": clients, "logit_bias": bias}
                    found = core.ask(do="rounds", prompts=prompts, **how)["ms"] / 1e3
                    alone += [found] * (turn > 0)
                    continue
                each.process.send_signal(signal.SIGCONT)
                times_seen = asyncio.run(
                    load(each.address, clients, iter(texts), args.count, logit_bias=bias, **each.fields)
                )
                each.process.send_signal(signal.SIGSTOP)
                if times_seen.tokens != answers * args.count:
                    raise SolError(f"{each.name}: got {times_seen.tokens} tokens, expected {answers * args.count}")
                seen[each.name] += [times_seen] * (turn > 0)
            print(f"{clients} clients, turn {turn}", file=sys.stderr)
        for name, parts in seen.items():
            whole = joined(parts)
            row: Row = {"engine": name, "clients": clients, **(summary(whole) if whole.sols else times(whole))}
            row["prompt_tokens"] = whole.prompts / row["answers"]
            if name == DENSE:
                ratios = [part.seconds / time for part, time in zip(parts, alone, strict=True)]
                row["overhead"] = float(np.median(ratios)) - 1
            yield row
        made = answers * args.count
        yield {"engine": CORE, "clients": clients, "tokens_per_second": made * len(alone) / sum(alone)}


def joined(parts: Sequence[Seen]) -> Seen:
    """All repetitions as one."""
    whole = Seen()
    for part in parts:
        whole.first += part.first
        whole.between += part.between
        whole.sols += part.sols
        whole.tokens += part.tokens
        whole.prompts += part.prompts
        whole.seconds += part.seconds
        whole.own_seconds += part.own_seconds
    return whole


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """Settings that are not facts of the machine."""
    return {name: getattr(args, name) for name in ("clients", "count", "repetitions", "least", "target_latency")}


def page(args: argparse.Namespace, name: str, checkpoint: Path, rows: Sequence[Row]) -> str:
    """The tables in Markdown."""
    head = (
        f"{machine()}; {name}, its bundle and {checkpoint.name}, {args.threads} threads, {args.count} tokens an answer,"
        f" {args.repetitions} repetitions of one answer a client, at least {args.least}; load: target "
        f"{args.target_latency:g} ms between tokens\n\n"
        "| clients | engine | tokens/s | first token, ms: p50 | p95 | between tokens, ms: p50 | p95 | budget | nats "
        "| over the core |\n|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|\n"
    )
    return head + "\n".join(map(line, rows)) + "\n"


def line(row: Row) -> str:
    """A row of the table; a figure that there is not is a dash."""

    def figure(name: str, form: str) -> str:
        return format(row[name], form) if name in row else "–"

    columns = [f"{name}_{part}" for name in ("first_token_ms", "between_tokens_ms") for part in ("p50", "p95")]
    cells = [figure("tokens_per_second", ".1f"), *(figure(name, ".1f") for name in columns)]
    cells += [figure("achieved_budget", ".2f"), figure("expected_loss", ".4f"), figure("overhead", "+.1%")]
    return f"| {row['clients']} | {row['engine']} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
