"""Thousands of generations of every kind in one process: do memory, descriptors, threads and processes stay flat?

    python runtime_tests/robustness/soak.py --count 10000

A bundle of random weights (two layers) generates under every schedule, is cancelled in several ways, writes and replays
traces, answers chats whose tokens stay in the cache, and scores. Every few hundred generations the model is dropped and
opened again. What the process holds is read at that moment, while no model is open. `make soak` runs this.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from helpers.tiny_bundle import write_bundle
from sol_rt import Controller, SolModel
from sol_rt.budget.schedules import PolicyInput
from sol_rt.bundle.actions import Action
from sol_rt.engine.hardware import processor_name
from sol_rt.errors import QualityWarning, UsageError
from sol_rt.generate.results import Generation
from sol_rt.generate.trace import read_trace

CONTEXT = 256
LONGEST = 200
JUDGED_STEPS = 64
"""Decode steps from which on a generation has to hold its budget."""
BUDGET_ERROR = 0.02
MOST_GROWTH = 1000.0
"""Kilobytes by which the resident size may grow in 1,000 generations, after the warm-up."""
SLOPE_OVER = 2000
"""Generations after the warm-up that a slope takes; fewer show the allocator's noise."""
WARM_UP = 0.25
"""Share of the samples that is left out of the slope."""
BUDGET_SCHEDULES = ("sol", "hull", "uniform", "entropy", "random")


class _Cancelled(Exception):
    """Exception that a caller's own code raises in the middle of a generation."""


@dataclass(frozen=True)
class Sample:
    """Resources that the process holds while no model is open.

    Attributes:
        done: generations so far.
        rss_kb: resident size, kilobytes.
        descriptors, threads, children: counts.
    """

    done: int
    rss_kb: int
    descriptors: int
    threads: int
    children: int


@dataclass
class Outcome:
    """Result of a soak.

    Attributes:
        kinds: generations of each kind.
        ends: how often each finish reason came.
        samples: one for each restart.
        budget_errors: |achieved - requested| of all generations that are judged.
        wrong: what went wrong; empty if nothing did.
        tokens: generated and scored tokens.
        cached: tokens of chat prompts that were still in the cache.
        floored: generations of a budget below the cheapest action, which are not judged.
        seconds: of all of it.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    samples: list[Sample] = field(default_factory=list)
    budget_errors: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    tokens: int = 0
    cached: int = 0
    floored: int = 0
    seconds: float = 0.0

    @property
    def steady(self) -> list[Sample]:
        """The samples after the warm-up."""
        return self.samples[int(len(self.samples) * WARM_UP) :]

    @property
    def growth(self) -> float:
        """Slope of the resident size after the warm-up: kilobytes in 1,000 generations, by least squares."""
        at = np.array([[sample.done / 1000, sample.rss_kb] for sample in self.steady])
        return float(np.polyfit(at[:, 0], at[:, 1], 1)[0])

    def faults(self, most_growth: float = MOST_GROWTH) -> list[str]:
        """Everything that a soak must not show."""
        found = list(self.wrong)
        if (worst := max(self.budget_errors, default=0.0)) > BUDGET_ERROR:
            found.append(f"budget error {worst:.4f}, expected at most {BUDGET_ERROR}")
        for name in ("descriptors", "threads", "children"):
            counts = [getattr(sample, name) for sample in self.steady]
            if max(counts) > min(counts):
                found.append(f"{name}: {min(counts)} to {max(counts)} after the warm-up, expected one number")
        if self.steady[-1].done - self.steady[0].done >= SLOPE_OVER and self.growth > most_growth:
            found.append(f"resident size: {self.growth:+.0f} kB in 1,000 generations, expected {most_growth:.0f}")
        return found


class Soak:
    """Runs generations of one seed on one bundle.

    Args:
        bundle: a bundle of `write_bundle` with losses and a policy.
        folder: for traces.
        seed: of everything that is drawn.
        measured: whether every second model counts its budgets in milliseconds that it measures, and not in bytes.
    """

    def __init__(self, bundle: Path, folder: Path, seed: int, measured: bool) -> None:
        self.bundle, self.folder, self.measured = bundle, folder, measured
        self.rng = random.Random(seed)
        self.outcome = Outcome()
        self._model: SolModel | None = None
        self._opened = 0
        self._chat: list[dict[str, str]] = []
        self._kinds: list[tuple[Callable[[], None], int]] = [
            (self._generate, 30), (self._chat_turn, 12), (self._close, 8), (self._drop, 4), (self._raise_outside, 5),
            (self._raise_inside, 5), (self._trace_and_replay, 8), (self._score, 10), (self._refused, 4),
            (self._sampled, 8), (self._axes, 6),
        ]  # fmt: skip

    def run(self, count: int, restart: int, tell: Callable[[str], None] = lambda _: None) -> Outcome:
        """Runs `count` generations and restarts the model after every `restart` of them."""
        started = time.perf_counter()
        kinds, weights = zip(*self._kinds, strict=True)
        for done in range(1, count + 1):
            kind = self.rng.choices(kinds, weights)[0]
            name = kind.__name__.strip("_").replace("_", " ")
            self.outcome.kinds[name] += 1
            state = self.rng.getstate()
            try:
                kind()
            except Exception as error:
                self.outcome.wrong.append(f"generation {done}, {name}: {type(error).__name__}: {str(error)[:300]}")
                self.rng.setstate(state)
            if done % restart == 0:
                self._restart()
                self.outcome.samples.append(sample(done))
                last = self.outcome.samples[-1]
                tell(f"{done}: {last.rss_kb} kB, {last.descriptors} descriptors, {last.threads} threads, "
                     f"{last.children} children, {time.perf_counter() - started:.0f} s")  # fmt: skip
        self.outcome.seconds = time.perf_counter() - started
        return self.outcome

    @property
    def model(self) -> SolModel:
        if self._model is None:
            self._opened += 1
            in_milliseconds = self.measured and self._opened % 2 == 0
            self._model = SolModel.from_pretrained(self.bundle, provider="cpu", measure_costs=in_milliseconds)
        return self._model

    def _restart(self) -> None:
        self._model, self._chat = None, []
        gc.collect()

    def _generate(self) -> None:
        """A budget and a schedule, to the end."""
        self._count(self.model.generate(self._prompt(), **self._budget(), **self._length()))

    def _sampled(self) -> None:
        settings = {
            "do_sample": True, "temperature": self.rng.choice([0.3, 1.0, 5.0]), "top_k": self.rng.choice([0, 1, 20]),
            "top_p": self.rng.choice([0.5, 1.0]), "min_p": self.rng.choice([None, 0.1]), "seed": self.rng.randrange(99),
            "repetition_penalty": self.rng.choice([1.0, 1.2]), "frequency_penalty": self.rng.choice([0.0, 0.5]),
            "stop_strings": self.rng.choice([(), ("w1 w2",), ("w40", "w50")]),
            "top_logprobs": self.rng.choice([0, 5]),
        }  # fmt: skip
        self._count(self.model.generate(self._prompt(), **self._budget(), **settings, **self._length()))

    def _axes(self) -> None:
        target = self.rng.choice([{"kv_density": 0.6}, {"channel_density": 0.75}, {"bits": 5.5}, {"max_loss": 0.02}])
        if "max_loss" not in target and self.rng.random() < 0.5:
            target = {**target, "schedule": self.rng.choice(["uniform", "random", "entropy"])}
        self._count(self.model.generate(self._prompt(), **target, **self._length()))

    def _chat_turn(self) -> None:
        """One more question of a conversation, whose earlier tokens are still in the cache."""
        self._chat.append({"role": "user", "content": self._text(self.rng.randint(1, 6))})
        how = self._budget(self.rng.choice([1.0, 0.7]))
        result = self.model.generate(self._chat, **how, max_new_tokens=self.rng.randint(1, 12))
        self._count(result)
        self.outcome.cached += result.cached_tokens
        self._chat.append({"role": "assistant", "content": result.text})
        if result.prompt_tokens > CONTEXT // 2:
            self._chat = []

    def _close(self) -> None:
        stream = self.model.stream(self._prompt(), trace=self._trace_file(), **self._budget(), **self._length())
        for number, _ in enumerate(stream):
            if number == 5:
                break
        stream.close()
        self._count(stream.result)

    def _drop(self) -> None:
        """A stream that nobody closes."""
        stream = self.model.stream(self._prompt(), trace=self._trace_file(), **self._budget(), **self._length())
        for _ in range(self.rng.randint(0, 4)):
            next(stream, None)

    def _raise_outside(self) -> None:
        try:
            for number, _ in enumerate(self.model.stream(self._prompt(), **self._budget(), **self._length())):
                if number == 3:
                    raise _Cancelled
        except _Cancelled:
            self.outcome.ends["exception outside"] += 1

    def _raise_inside(self) -> None:
        """A schedule of the caller's raises."""
        try:
            self.model.generate(self._prompt(), budget=0.8, schedule=_Failing, **self._length())
        except _Cancelled:
            self.outcome.ends["exception inside"] += 1

    def _trace_and_replay(self) -> None:
        path = self._trace_file()
        result = self.model.generate(self._prompt(), trace=path, **self._budget(), **self._length())
        self._count(result)
        again = self.model.generate(replay=read_trace(path))
        self.outcome.tokens += len(again.tokens)
        if again.tokens != result.tokens or again.first_difference is not None:
            self.outcome.wrong.append(f"a replay differs at token {again.first_difference}")

    def _score(self) -> None:
        tokens = [self.rng.randrange(90) for _ in range(self.rng.randint(3, LONGEST))]
        scores = self.model.score(tokens, context=self.rng.randint(1, len(tokens) - 1), **self._budget())
        self.outcome.tokens += len(scores.logprobs)
        self.outcome.ends["scored"] += 1

    def _refused(self) -> None:
        wrong: dict[str, Any] = self.rng.choice([
            {"budget": 2.0}, {"schedule": "x"}, {"temperature": -1.0}, {"max_new_tokens": 0}, {"kv_density": 9},
        ])  # fmt: skip
        try:
            self.model.generate(self._prompt(), **wrong)
        except UsageError:
            self.outcome.ends["refused"] += 1
        else:
            self.outcome.wrong.append(f"{wrong} was taken")

    def _count(self, result: Generation | None) -> None:
        if result is None:
            return
        self.outcome.ends[result.finish_reason] += 1
        self.outcome.tokens += len(result.tokens)
        self.outcome.floored += result.floored
        asked = result.schedule in BUDGET_SCHEDULES or result.schedule == "dense"
        whole = result.finish_reason != "closed" and len(result.tokens) > JUDGED_STEPS
        if asked and whole and not result.floored:
            self.outcome.budget_errors.append(abs(result.achieved_budget - result.requested_budget))
            if self.outcome.budget_errors[-1] > BUDGET_ERROR:
                self.outcome.wrong.append(
                    f"{result.schedule} ({result.cost_model}): asked {result.requested_budget:.4f}, achieved "
                    f"{result.achieved_budget:.4f} in {len(result.tokens) - 1} steps"
                )

    def _budget(self, budget: float | None = None) -> dict[str, Any]:
        if budget is None and self.rng.random() < 0.1:
            return {"schedule": self.rng.choice(["dense", "fixed:k030-s050-q4", "fixed:k100-s100-q6"])}
        budget = self.rng.choice([0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0]) if budget is None else budget
        return {"budget": budget, "schedule": self.rng.choice([*BUDGET_SCHEDULES, None])}

    def _length(self) -> dict[str, Any]:
        ends = {"eos_token_id": []} if self.rng.random() < 0.7 else {}
        longer = self.rng.randint(JUDGED_STEPS + 1, LONGEST)
        return {"max_new_tokens": self.rng.choice([1, self.rng.randint(2, JUDGED_STEPS), longer, longer]), **ends}

    def _prompt(self) -> str | list[int]:
        count = self.rng.randint(1, CONTEXT - LONGEST)
        return self._text(count) if self.rng.random() < 0.5 else [self.rng.randrange(90) for _ in range(count)]

    def _text(self, count: int) -> str:
        return " ".join(f"w{self.rng.randrange(86)}" for _ in range(count))

    def _trace_file(self) -> Path:
        return self.folder / f"trace-{self.rng.randrange(4)}.jsonl"


class _Failing:
    """A schedule that raises at its fourth step."""

    name = "failing"

    def __init__(self, controller: Controller) -> None:
        self.dense, self.steps = controller.dense, 0

    def choose(self, step: PolicyInput) -> Action:
        self.steps += 1
        if self.steps == 4:
            raise _Cancelled
        return self.dense


def sample(done: int) -> Sample:
    """Measures the resources that this process holds now. Linux only."""
    rss = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") // 1024
    children = sum(len(task.joinpath("children").read_text().split()) for task in Path("/proc/self/task").iterdir())
    return Sample(done, rss, len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), children)


def make_bundle(folder: Path) -> Path:
    """A bundle for a soak."""
    return write_bundle(folder, policy=True, losses=True)


def report(outcome: Outcome, seed: int, restart: int, commit: str, command: str) -> str:
    """The page that `--output` writes, as Markdown."""
    count, steady = sum(outcome.kinds.values()), outcome.steady
    errors = np.array(outcome.budget_errors or [0.0])
    faults = outcome.faults()
    rows = "\n".join(
        f"| {s.done:,} | {s.rss_kb:,} | {s.descriptors} | {s.threads} | {s.children} |"
        for s in outcome.samples[:: max(1, len(outcome.samples) // 10)]
    )

    def spread(name: str) -> str:
        counts = [getattr(sample, name) for sample in steady]
        return str(counts[0]) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"

    return f"""# Soak: {count:,} generations in one process, {time.strftime("%Y-%m-%d")}

**Question.** Do memory, descriptors, threads and processes stay flat, and do budgets hold,
over {count:,} generations of every kind?

- **Model**: a bundle of random weights, two layers, {CONTEXT} tokens of context, with losses and a policy; on the CPU.
- **Machine**: {processor_name()}, shared with other work.
- **Commit**: `{commit}`.
- **Seed**: {seed}. The model is dropped and opened again after every {restart} generations. Every second one counts
  budgets in milliseconds.

```
{command}
```

**Result.** {f"{len(faults)} faults." if faults else "No fault."} {outcome.seconds:.0f} s, {outcome.tokens:,} tokens
generated or scored, {outcome.cached:,} tokens of chats taken from the cache.

| what | after the warm-up (the first quarter) | allowed |
|---|--:|--:|
| resident size, slope | {outcome.growth:+.0f} kB in 1,000 generations | {MOST_GROWTH:.0f} |
| resident size, from and to | {steady[0].rss_kb:,} and {steady[-1].rss_kb:,} kB | |
| open descriptors | {spread("descriptors")} | one number |
| threads | {spread("threads")} | one number |
| child processes | {spread("children")} | one number |
| largest budget error of {len(outcome.budget_errors):,} generations | {errors.max():.4f} | {BUDGET_ERROR} |
| mean budget error of the same | {errors.mean():.4f} | |

Budget errors are |achieved - requested| of the generations that asked for a budget, ran to their end and had at least
{JUDGED_STEPS} decode steps; {outcome.floored:,} generations asked for less than the cheapest action costs and are left
out.

| kind | generations |
|---|--:|
{chr(10).join(f"| {name} | {number:,} |" for name, number in outcome.kinds.most_common())}

They ended by: {", ".join(f"{name} {number:,}" for name, number in outcome.ends.most_common())}.

What the process held while no model was open:

| generations | resident kB | descriptors | threads | children |
|--:|--:|--:|--:|--:|
{rows}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description="Run thousands of generations of every kind in one process.")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--restart", type=int, default=250, help="generations between two openings of the model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, help="page to write, such as build/results/soak.md")
    arguments = parser.parse_args()
    if arguments.count < 4 * arguments.restart:
        parser.error(f"--count: got {arguments.count}, expected at least 4 restarts, which are {4 * arguments.restart}")
    root = Path(__file__).resolve().parents[2]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True).stdout[:7]
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        os.environ["SOL_RT_HOME"] = str(folder / "home")
        warnings.simplefilter("ignore", QualityWarning)
        soak = Soak(make_bundle(folder / "tiny"), folder, arguments.seed, measured=True)
        outcome = soak.run(arguments.count, arguments.restart, lambda line: print(line, flush=True))
    if arguments.output is not None:
        command = f"python runtime_tests/robustness/soak.py --count {arguments.count} --restart {arguments.restart}"
        page = report(outcome, arguments.seed, arguments.restart, commit, f"{command} --seed {arguments.seed}")
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(page, encoding="utf-8")
    print(json.dumps({"growth_kb_per_1000": round(outcome.growth), "kinds": outcome.kinds, "ends": outcome.ends,
                      "largest_budget_error": max(outcome.budget_errors, default=0.0)}))  # fmt: skip
    for fault in outcome.faults():
        print(f"fault: {fault}", file=sys.stderr)
    return 1 if outcome.faults() else 0


if __name__ == "__main__":
    raise SystemExit(main())
