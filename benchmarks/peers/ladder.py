"""Compares our fixed actions with llama.cpp's quantization ladder: perplexity and speed of the same weights in one run.

    python benchmarks peers.ladder smollm2-135m -f valid.tokens.txt -o build/results/ladder-smollm2-135m.md
    python benchmarks peers.ladder FILE.gguf -f TEXT --contexts 512 --windows 20 --actions k100-s100-q4,k100-s100-q8
    ... --no-speed                    perplexities alone

Prints a Markdown page; -o also writes the page to a file, and its figures beside it as .json. `make ladder` first
makes llama.cpp's environment, ENVIRONMENTS/llama.cpp/bin/python.

Perplexity follows llama-perplexity: windows of c tokens, the second half scored, the same token ids for all. llama.cpp
runs the whole window with a rung. An action runs as in `sol-rt perplexity`: its first half is prefilled dense, and its
steps follow, in batches if the action reads all pages, which gives the same losses. In the column `whole window` the
action runs the first half too. Differences are paired. RTN4 is plain round-to-nearest in blocks of 32 with all
matrices at 4 bits; RTN4-H8 has embedding and LM head at 8 bits.

The cache folder keeps the result of each window, so that a stopped run continues, and the model files, of which the
largest takes 4 bytes per weight.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from peers.ladder_files import AS_IT_IS, MORE_RUNGS, RUNGS, SOURCE, WITH_IMPORTANCE, Contents, Ladder, Rounding
from peers.ladder_report import Row, as_json, check_table, checks, table, verdict, verdicts
from peers.ladder_scores import Loss, Scores
from peers.peer_models import bundle_of
from peers.peer_report import ratios
from peers.peers import Entry, action_list, measure, positive, positives
from peers.workers.client import WITHOUT_FLASH, WorkerError, WorkerProcess, engines_of
from report import facts, quartiles, write_page
from sol_rt.bundle.actions import Action
from sol_rt.bundle.config import CONFIG_NAME
from sol_rt.engine.hardware import processor_name
from sol_rt.errors import SolError, UsageError
from sol_rt.evaluation.quality.perplexity import text_windows
from sol_rt.export.actions.losses import Candidate, token_losses
from sol_rt.generate.model import SolModel
from sol_rt.store.home import find_bundle
from sol_rt.store.pull import resolve

_BATCH = 512
_TRIALS = 3

Score = Callable[[Sequence[int]], Sequence[float]]
"""Returns the losses of a window's scored tokens, in nats."""


def runs_alone(action: Action) -> bool:
    """True if an action is also scored over whole windows: it reads fewer bits but everything else."""
    return (action.kv_density, action.channel_density) == (1.0, 1.0)


@dataclass(frozen=True)
class Cut:
    """The windows of a context."""

    context: int
    windows: list[list[int]]


@contextlib.contextmanager
def file_scorer(python: Path, file: Path, threads: int) -> Iterator[Score]:
    """Starts llama.cpp on a .gguf and yields a function that scores windows."""
    with WorkerProcess.start("llama.cpp", python, file, threads) as worker:
        yield lambda window: worker.ask(do="nll", windows=[list(window)])["nll"][0]


class Run:
    """One comparison: opens the bundle, makes missing files, and measures what is missing.

    Raises SolError, WorkerError.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.python = args.environments / "llama.cpp" / "bin" / "python"
        if not self.python.exists():
            raise UsageError(f"{self.python}: not there, expected llama.cpp's environment; `make ladder` makes it")
        checkpoint, self.name = resolve(args.model, lambda step, done, total: None)
        self.ladder = Ladder(checkpoint, args.cache, self.python, args.threads, args.importance)
        path = find_bundle(args.bundle) if args.bundle else bundle_of(args.model, self.name)
        self.model = SolModel.from_pretrained(path, threads=args.threads, provider="cpu", measure_costs=False)
        config = self.model.bundle.config
        self.actions = args.actions or [entry.action for entry in config.actions]
        if foreign := [action for action in self.actions if action.variant not in config.variants]:
            tag, has = foreign[0].tag, ", ".join(config.variants)
            raise UsageError(f"--actions {tag}: no variant {foreign[0].variant} in this bundle; it has {has}")
        self.actions = list(dict.fromkeys([config.dense, *self.actions]))
        self.revision = hashlib.sha256((self.model.bundle.path / CONFIG_NAME).read_bytes()).hexdigest()[:8]
        self.engines: dict[int, str] = {}  # how llama.cpp was timed, by context
        self.step_bytes = {key: variant.weight_bytes for key, variant in config.variants.items()}
        self.cuts = self._cut(args.file.read_text(encoding="utf-8"))

    def _cut(self, text: str) -> list[Cut]:
        tokenizer, model = self.model.tokenizer, self.model.bundle.config.model
        limit = model.max_context - self.args.count - 2
        if beyond := [context for context in self.args.contexts if context > limit]:
            raise UsageError(f"--contexts {beyond[0]}: the model's context allows {limit} and {self.args.count} steps")
        numbers = [*self.args.windows, *[self.args.windows[-1]] * len(self.args.contexts)]
        return [
            Cut(context, text_windows(text, tokenizer, model, context, number))
            for context, number in zip(self.args.contexts, numbers, strict=False)
        ]

    @cached_property
    def scores(self) -> Scores:
        """The stored scores, read at first use. By then the folder is locked, so no other run adds to them."""
        return Scores(self.ladder.folder / "scores.json")

    def score(self) -> None:
        """Measures all missing scores. Makes and opens a file only if one of its scores is missing."""
        files: dict[str, Callable[[], Path]] = {SOURCE: self.ladder.source}
        files |= {name: (lambda name=name: self.ladder.rung(name)) for name in self.args.rungs}
        files |= {each.name: (lambda each=each: self.ladder.rounded(each)) for each in self.args.roundings}
        for name, made in files.items():
            key = self.ladder.key(name)
            if any(self.scores.missing(key, cut.windows) for cut in self.cuts):
                with file_scorer(self.python, made(), self.args.threads) as scorer:
                    for cut in self.cuts:
                        for window in self._missing(name, [key], cut):
                            self.scores.keep(key, window, scorer(window))
        keys = {self._key(action): action for action in self.actions}
        alone = {self._key(action, whole=True): action for action in self.actions if runs_alone(action)}
        for cut in self.cuts:
            for window in self._missing("actions", [*keys, *alone], cut):
                lacking = [key for key in keys if self.scores.missing(key, [window])]
                losses = token_losses(self.model.engine, [window], [Candidate(keys[key]) for key in lacking])
                for key, nats in zip(lacking, losses, strict=True):
                    self.scores.keep(key, window, nats)
                for key in [key for key in alone if self.scores.missing(key, [window])]:
                    one = token_losses(self.model.engine, [window], [Candidate(alone[key])], prefill=alone[key])
                    self.scores.keep(key, window, one[0])

    def _key(self, action: Action, whole: bool = False) -> str:
        """Key of an action's stored losses. It names the bundle's export, because another export has other losses."""
        whole = whole and action != self.model.bundle.config.dense  # the dense action runs the first half in any case
        return f"{action.tag} {self.revision}" + (" whole" if whole else "")

    def _missing(self, name: str, keys: Sequence[str], cut: Cut) -> Iterator[Sequence[int]]:
        """Yields windows that lack a result under one of the keys. Shows progress on stderr as `name`."""
        found = [window for window in cut.windows if any(self.scores.missing(key, [window]) for key in keys)]
        for done, window in enumerate(found):
            print(f"\r{name} @ {cut.context}: {done}/{len(found)} windows ", end="", file=sys.stderr, flush=True)
            yield window
        if found:
            print(file=sys.stderr)

    def speeds(self) -> dict[int, dict[str, list[float]]]:
        """Measures tokens/s by context and row, all rows in turn. Notes in `engines` how llama.cpp ran."""
        size = self.model.bundle.config.model.vocab_size
        words = np.random.default_rng(0).integers(0, size, max(self.args.contexts)).tolist()
        found = {}
        for context in self.args.contexts:
            engine = self.engines[context] = self._faster_engine(words[:context])
            with contextlib.ExitStack() as stack:
                path, threads = self.model.bundle.path, self.args.threads
                own = stack.enter_context(WorkerProcess.start("sol_rt", sys.executable, path, threads))
                others = [stack.enter_context(self._llama(engine, name, name)) for name in self.args.rungs]
                entries = [*(Entry(own, action.tag) for action in self.actions), *map(Entry, others)]
                found[context] = self._rates(entries, words[:context], self.args.repetitions)
            print(f"measured {len(entries)} rows at context {context}", file=sys.stderr)
        return found

    def _llama(self, engine: str, rung: str, name: str) -> WorkerProcess:
        return WorkerProcess.start(engine, self.python, self.ladder.rung(rung), self.args.threads, name)

    def _rates(self, entries: list[Entry], prompt: list[int], repetitions: int) -> dict[str, list[float]]:
        """Tokens/s of decoding after a prompt, by entry."""
        for worker in dict.fromkeys(entry.worker for entry in entries):
            worker.ask(do="prompt", tokens=prompt, room=self.args.count)
        request: dict[str, object] = {"do": "decode", "count": self.args.count}
        return measure(entries, request, self.args.count, repetitions)

    def _faster_engine(self, prompt: list[int]) -> str:
        """Returns llama.cpp's faster setting on the first rung after this prompt: with or without flash attention."""
        with contextlib.ExitStack() as stack:
            rung, engines = self.args.rungs[0], engines_of("llama.cpp")
            trial = [Entry(stack.enter_context(self._llama(engine, rung, engine))) for engine in engines]
            rates = self._rates(trial, prompt, _TRIALS)
        return max(engines, key=lambda engine: float(np.median(rates[engine])))

    def result(self, cut: Cut, contents: Mapping[str, Contents], rates: Mapping[str, Sequence[float]]) -> Result:
        """All rows of a context.

        Args:
            cut: the windows.
            contents: contents of the source's and every rung's file.
            rates: tokens/s of every row, or empty if no speed was measured.
        """

        def loss(key: str) -> Loss:
            return self.scores.loss(key, cut.windows)

        def rung(name: str) -> Row:
            held = contents[name]
            return Row(name, held.bits, held.step_bytes, loss(self.ladder.key(name)), rates=rates.get(name))

        def own(action: Action) -> Row:
            read = self.step_bytes[action.variant]
            whole = loss(self._key(action, whole=True)) if runs_alone(action) else None
            return Row(action.tag, 8 * read / weights, read, loss(self._key(action)), whole, rates.get(action.tag))

        weights, head_share = contents[SOURCE].weights, contents[SOURCE].head_share
        return Result(
            cut,
            Row(SOURCE, contents[SOURCE].bits, None, loss(SOURCE)),
            [rung(name) for name in self.args.rungs],
            [Row(each.name, each.bits_a_weight(head_share), None, loss(each.name)) for each in self.args.roundings],
            [own(action) for action in self.actions],
        )


@dataclass(frozen=True)
class Result:
    """The rows of a context; the first action is the dense one."""

    cut: Cut
    source: Row
    rungs: list[Row]
    references: list[Row]
    actions: list[Row]

    @property
    def timed(self) -> bool:
        return self.actions[0].rates is not None

    def page(self) -> str:
        """The context's Markdown: bits, all rows, and the verdicts if speeds were measured."""
        dense, count = self.actions[0], len(self.cut.windows)
        tokens = count * self.source.loss.tokens
        text = f"""## Context {self.cut.context}

{count} windows of {self.cut.context} tokens, {tokens} scored. The source in float32 has perplexity
{self.source.loss.ppl:.3f} ± {self.source.loss.ppl_error:.3f}.

Whole windows of an action against its bounds:

{check_table(checks(self.actions, self.rungs, self.references, self.source), self.source)}

{table([*self.rungs, *self.actions], self.source, dense)}
"""
        if self.references:
            text += f"\nPlain rounding, in float32:\n\n{table(self.references, self.source, dense)}\n"
        if self.timed:
            text += f"\n{verdicts([verdict(rung, self.actions) for rung in self.rungs])}\n"
            shares = {row.name: ratios(dense.rates or (), row.rates or ()) for row in self.actions}
            cheapest = min(shares, key=lambda name: float(np.median(shares[name])))
            text += f"\nThe cheapest action, `{cheapest}`, takes {quartiles(shares[cheapest], 3)} of dense.\n"
        return text

    def as_json(self) -> dict[str, Any]:
        rows = {"rungs": self.rungs, "references": self.references, "actions": self.actions}
        found: dict[str, Any] = {"context": self.cut.context, "source": as_json(self.source, self.source)}
        found |= {kind: [as_json(row, self.source) for row in part] for kind, part in rows.items()}
        if self.timed:
            each = [verdict(rung, self.actions) for rung in self.rungs]
            found["verdicts"] = {one.rung.name: {"held": one.held, "text": one.text} for one in each}
        return found


def page(run: Run, contents: Mapping[str, Contents], results: Sequence[Result], command: str) -> str:
    """The whole Markdown page."""
    config, args = run.model.bundle.config, run.args
    files = "\n".join(
        f"| `{name}` | {held.bits:.2f} | {held.file_bytes / 1e6:.0f} | "
        f"{', '.join(f'{kind} {share:.0%}' for kind, share in held.types.items())} |"
        for name, held in contents.items()
    )
    without = ", ".join(str(context) for context, engine in run.engines.items() if engine == WITHOUT_FLASH)
    speed = f"""Speed: {args.count} greedy decode steps after a prompt of the context's length, which is not timed;
median [quartiles] of {args.repetitions} repetitions, all rows in turn in each, after a turn of warm-up; ratios are
taken within a repetition. llama.cpp with flash attention, its default, or without, whichever decoded the first rung
faster: without at {without or "no context"}."""
    return f"""# {run.name} beside llama.cpp's quantization ladder, {time.strftime("%Y-%m-%d")}

```
{command}
```

{processor_name()}, {args.threads} threads, Python {platform.python_version()}. Rungs: llama-cpp-python's
`llama_model_quantize` on the float32 weights, {_importance(args)}; f16 KV, batches of {_BATCH}.
Ours: a bundle of the same weights, {config.kv.dtype} KV, its fixed actions.

**Limits.** Rungs are quantized anew from float32 values. Where the source file is itself quantized to 4 bits, as GGUF
files often are, llama.cpp so quantizes twice, while a bundle keeps the file's own codes; the file as it is
{"is the row `FILE`" if AS_IT_IS in args.rungs else "has no row"}.
Where K-quants do not fit a model's sizes, a rung has more bits than its name says: see its types. One text and machine.

Perplexity of {args.file.name} by llama-perplexity's convention, the second half of every window scored. A rung runs the
whole window; an action's first half is prefilled dense, as in generation, and `whole window` is the increase where an
action runs the first half too. Losses are paired, ± is the standard error over windows; that of a perplexity takes
tokens as independent. "Within the error" is said where the 95% interval by Student's t has 0 in it.
{speed if results[0].timed else ""}

| file | bits a weight | MB | types by share of weights |
|---|--:|--:|---|
{files}

{chr(10).join(result.page() for result in results)}"""


def _importance(args: argparse.Namespace) -> str:
    """Sentence of the page on importance matrices."""
    if not any(name.endswith(WITH_IMPORTANCE) for name in args.rungs):
        return "no importance matrix"
    return f"those with `{WITH_IMPORTANCE}` with an importance matrix of {args.importance.name}, the others without"


def document(run: Run, results: Sequence[Result], command: str) -> dict[str, Any]:
    """The figures of the page as a JSON object: what was run, when and on which machine, then every context."""
    about = facts("sol_rt.ladder", run.name, run.args.file, run.args.threads)
    return {**about, "command": command, "contexts": [result.as_json() for result in results]}


def rung_list(text: str) -> list[str]:
    """Reads names of rungs separated by commas. Raises ArgumentTypeError."""
    names = [name.strip() for name in text.split(",")]
    known = (*RUNGS, *MORE_RUNGS)
    if unknown := [name for name in names if name not in known]:
        raise argparse.ArgumentTypeError(f"got {unknown[0]!r}, expected some of {', '.join(known)}")
    return names


def rounding_list(text: str) -> list[Rounding]:
    """Reads names of plain roundings separated by commas; an empty text means none. Raises ArgumentTypeError."""
    try:
        return [Rounding.parse(name.strip()) for name in text.split(",") if name.strip()]
    except SolError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="alias or .gguf")
    parser.add_argument("-f", "--file", type=Path, required=True, help="text to score")
    parser.add_argument("--bundle", help="folder or name; default: the model's bundle, exported if missing")
    parser.add_argument(
        "--environments", type=Path, default=Path(".venv-peers"), help="folder with the environment llama.cpp"
    )
    parser.add_argument(
        "--cache", type=Path, default=Path(".venv-peers/ladder"), help="folder that keeps files and scores"
    )
    parser.add_argument("--contexts", type=positives, default="512,4096", help="window and prompt sizes in tokens")
    parser.add_argument("--windows", type=positives, default="40,8", help="largest number of windows per context")
    parser.add_argument(
        "--rungs", type=rung_list, default=",".join(RUNGS), help=f"also {', '.join(MORE_RUNGS)}: see ladder_files.py"
    )
    parser.add_argument("--importance", type=Path, help="text for the importance matrices of rungs with -I")
    parser.add_argument(
        "--actions", type=action_list, help="action tags; default: all of the bundle; dense is always added"
    )
    parser.add_argument("--roundings", type=rounding_list, default="RTN4,RTN4-H8", help="plain roundings; '' for none")
    parser.add_argument("--no-speed", action="store_true", help="measure only perplexities")
    parser.add_argument("-n", "--count", type=positive, default=32, help="decode steps per repetition")
    parser.add_argument("-r", "--repetitions", type=positive, default=8)
    parser.add_argument("-t", "--threads", type=positive, default=os.cpu_count() or 1)
    parser.add_argument("-o", "--output", type=Path, help="file for the page; its figures go beside it as .json")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the workers, most of them stopped, end too
    try:
        run = Run(args)
        with run.ladder.locked():
            run.score()
            rates = {} if args.no_speed else run.speeds()
        contents = {SOURCE: Contents.of(run.ladder.source())}
        contents |= {name: Contents.of(run.ladder.rung(name)) for name in args.rungs}
        results = [run.result(cut, contents, rates.get(cut.context, {})) for cut in run.cuts]
    except (SolError, WorkerError, OSError, UnicodeDecodeError) as error:
        sys.exit(f"error: {error}")
    text = page(run, contents, results, shown_command(sys.argv))
    if args.output:
        write_page(args.output, text)
        figures = document(run, results, shown_command(sys.argv))
        args.output.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(text, end="")


def shown_command(argv: Sequence[str]) -> str:
    """The command line without the folders of paths, which differ between machines."""
    words = [Path(word).name if "/" in word else word for word in argv[1:]]
    return shlex.join(["python", "benchmarks", "peers.ladder", *words])


if __name__ == "__main__":
    main()
