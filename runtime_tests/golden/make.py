"""Makes golden traces: what `SolModel` generates from a bundle, for every other host to repeat.

    python runtime_tests/golden/make.py --tiny                  # tiny/ and cases.tsv, as they are checked in
    python runtime_tests/golden/make.py BUNDLE -o FOLDER        # cases.tsv of another bundle
    python runtime_tests/golden/make.py BUNDLE -o FOLDER --native    # the same in less time, for native hosts alone
    python runtime_tests/golden/make.py --only dense,sol-0.8    # these cases again, the others as they are

A case is kept only if every way of computing it gives the same tokens and actions: native operators on every SIMD
target of the processor and with one thread; native operators with logits and hidden states shaken by a thousandth,
which is what a flip of a rounded activation comes to; function bodies with both accuracies of their products, and
shaken by six thousandths. Where they differ, another seed or another prompt is tried. A case for which none is found is
marked `native=1` if the native operators agree, and else left out. So is a case that asks for something that the
bundle lacks.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from golden.cases import FILE, Case, Played, difference, line_of, play, read_cases, write_cases
from helpers.simd_targets import X86_TARGETS
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import SolConfig

HERE = Path(__file__).resolve().parent
_ATTEMPTS = 10
_SMALL, _LARGE = 1e-3, 6e-3


class Way(NamedTuple):
    """A way of computing. `shake` is the standard deviation of what is added to logits and hidden states, in shares of
    their own.
    """

    name: str
    native: bool = True
    threads: int = 2
    mask: int = 0
    shake: float = 0.0
    seed: int = 0


WAYS = (
    Way("native"),
    Way("native, 1 thread", threads=1),
    *(Way(f"native, {name}", mask=mask) for name, mask in X86_TARGETS.items()),
    *(Way(f"native, shaken {seed}", shake=_SMALL, seed=seed) for seed in range(2)),
    Way("bodies", native=False),
    *(Way(f"bodies, shaken {seed}", native=False, shake=_LARGE, seed=seed) for seed in range(8)),
)

_SAMPLED = {"do_sample": "1", "seed": "?"}
SPECS: tuple[tuple[str, int, dict[str, str]], ...] = (
    # name, tokens of the prompt (negative: it ends so many before an end token), options; `?` stands for a seed
    ("dense", 24, {"schedule": "dense", "max_new_tokens": "40"}),
    ("dense-one-token-prompt", 1, {"schedule": "dense", "max_new_tokens": "24"}),
    ("dense-one-new-token", 12, {"schedule": "dense", "max_new_tokens": "1"}),
    ("default", 20, {"max_new_tokens": "32"}),
    ("budget-1", 20, {"budget": "1.0", "max_new_tokens": "32"}),
    ("hull-0.8", 24, {"schedule": "hull", "budget": "0.8", "max_new_tokens": "64"}),
    ("hull-0.6", 30, {"schedule": "hull", "budget": "0.6", "max_new_tokens": "64"}),
    ("hull-0.4", 16, {"schedule": "hull", "budget": "0.4", "max_new_tokens": "64"}),
    ("hull-floor", 16, {"schedule": "hull", "budget": "0", "max_new_tokens": "32"}),
    ("hull-long", 20, {"schedule": "hull", "budget": "0.6", "max_new_tokens": "220"}),
    ("hull-across-capacity", 60, {"schedule": "hull", "budget": "0.7", "max_new_tokens": "80"}),
    ("hull-long-prompt", 300, {"schedule": "hull", "budget": "0.5", "max_new_tokens": "48"}),
    ("hull-max-loss-0.01", 24, {"schedule": "hull", "max_loss": "0.01", "max_new_tokens": "64"}),
    ("hull-max-loss-0.05", 200, {"schedule": "hull", "max_loss": "0.05", "max_new_tokens": "64"}),
    ("sol-0.9", 24, {"schedule": "sol", "budget": "0.9", "max_new_tokens": "40"}),
    ("sol-0.8", 24, {"schedule": "sol", "budget": "0.8", "max_new_tokens": "72"}),
    ("sol-0.7", 96, {"schedule": "sol", "budget": "0.7", "max_new_tokens": "40"}),
    ("sol-floor", 16, {"schedule": "sol", "budget": "0", "max_new_tokens": "24"}),
    ("sol-budget-1", 16, {"schedule": "sol", "budget": "1.0", "max_new_tokens": "16"}),
    ("sol-max-loss", 30, {"schedule": "sol", "max_loss": "0.003", "max_new_tokens": "40"}),
    ("sol-long", 20, {"schedule": "sol", "budget": "0.8", "max_new_tokens": "201"}),
    ("uniform-0.8", 24, {"schedule": "uniform", "budget": "0.8", "max_new_tokens": "48"}),
    ("uniform-0.5", 24, {"schedule": "uniform", "budget": "0.5", "max_new_tokens": "72"}),
    ("uniform-kv-density", 150, {"schedule": "uniform", "kv_density": "0.5", "max_new_tokens": "40"}),
    ("uniform-channel-density", 24, {"schedule": "uniform", "channel_density": "0.8", "max_new_tokens": "48"}),
    ("uniform-bits", 24, {"schedule": "uniform", "bits": "5.5", "max_new_tokens": "72"}),
    ("axes-default", 60, {"bits": "6", "kv_density": "0.7", "max_new_tokens": "40"}),
    ("entropy-0.7", 24, {"schedule": "entropy", "budget": "0.7", "max_new_tokens": "72"}),
    ("entropy-axes", 80, {"schedule": "entropy", "bits": "6", "channel_density": "0.9", "max_new_tokens": "40"}),
    ("random-0.7", 24, {"schedule": "random", "budget": "0.7", "max_new_tokens": "72", "seed": "?"}),
    ("random-axes", 24, {"schedule": "random", "bits": "6", "max_new_tokens": "40", "seed": "?"}),
    ("fixed-q4", 24, {"schedule": "fixed:k100-s100-q4", "max_new_tokens": "40"}),
    ("fixed-mixed", 24, {"schedule": "fixed:k100-s100-qmix", "max_new_tokens": "40"}),
    ("fixed-other-kv-density", 180, {"schedule": "fixed:k050-s100-q8", "max_new_tokens": "32"}),
    ("fixed-channels", 24, {"schedule": "fixed:k100-s060-q6", "max_new_tokens": "40"}),
    ("sampled-file-settings", 24, {**_SAMPLED, "schedule": "dense", "max_new_tokens": "48"}),
    ("sampled-top-k", 16, {**_SAMPLED, "budget": "0.8", "temperature": "1.2", "top_k": "5", "max_new_tokens": "48"}),
    ("sampled-top-p", 16, {**_SAMPLED, "budget": "0.8", "temperature": "1.3", "top_k": "0", "top_p": "0.9",
                           "max_new_tokens": "48"}),
    ("sampled-min-p", 16, {**_SAMPLED, "budget": "0.7", "temperature": "1.5", "top_k": "0", "min_p": "0.05",
                           "max_new_tokens": "48"}),
    ("sampled-everything", 16, {**_SAMPLED, "schedule": "hull", "budget": "0.6", "temperature": "0.9", "top_k": "30",
                                "top_p": "0.95", "min_p": "0.02", "repetition_penalty": "1.1",
                                "presence_penalty": "0.3", "frequency_penalty": "0.2", "max_new_tokens": "48"}),
    ("sampled-plain", 1, {**_SAMPLED, "schedule": "dense", "temperature": "1.0", "top_k": "0", "max_new_tokens": "40"}),
    ("sampled-large-seed", 16, {"do_sample": "1", "seed": "?large", "budget": "0.8", "max_new_tokens": "32"}),
    ("sampled-random-schedule", 16, {**_SAMPLED, "schedule": "random", "budget": "0.8", "max_new_tokens": "32"}),
    ("sampled-temperature-0", 16, {**_SAMPLED, "schedule": "dense", "temperature": "0", "max_new_tokens": "24"}),
    ("repetition-penalty", 24, {"schedule": "hull", "budget": "0.8", "repetition_penalty": "1.15",
                                "max_new_tokens": "32"}),
    ("presence-penalty", 24, {"schedule": "hull", "budget": "0.8", "presence_penalty": "0.6", "max_new_tokens": "32"}),
    ("frequency-penalty", 24, {"schedule": "dense", "frequency_penalty": "0.4", "max_new_tokens": "32"}),
    ("end-token", -2, {"schedule": "hull", "budget": "0.8", "max_new_tokens": "64"}),
    ("end-token-sampled", -3, {**_SAMPLED, "schedule": "hull", "budget": "0.7", "max_new_tokens": "100"}),
    ("live-hull", 24, {"schedule": "hull", "budget": "0.9", "budget_at": "20:0.5,50:1.0,80:0.7",
                       "max_new_tokens": "110"}),
    ("live-sol", 24, {"schedule": "sol", "budget": "1.0", "budget_at": "10:0.8,40:1,57:0.75",
                      "max_new_tokens": "90"}),
    ("live-uniform", 24, {"schedule": "uniform", "budget": "0.6", "budget_at": "30:0.9", "max_new_tokens": "70"}),
    ("live-entropy", 24, {"schedule": "entropy", "budget": "0.9", "budget_at": "20:1.0,30:0.7",
                          "max_new_tokens": "60"}),
    ("live-random", 24, {"schedule": "random", "budget": "1.0", "budget_at": "12:0.7", "max_new_tokens": "40",
                         "seed": "?"}),
    ("live-floor", 24, {"schedule": "hull", "budget": "0.1", "budget_at": "30:0.9", "max_new_tokens": "60"}),
    ("live-from-loss", 24, {"schedule": "hull", "max_loss": "0.05", "budget_at": "1:0.9", "max_new_tokens": "40"}),
    ("sol-short-0.9", 24, {"schedule": "sol", "budget": "0.9", "max_new_tokens": "20"}),
    ("sol-short-0.75", 80, {"schedule": "sol", "budget": "0.75", "max_new_tokens": "24"}),
    ("live-sol-short", 24, {"schedule": "sol", "budget": "1.0", "budget_at": "4:0.8,14:1,18:0.9",
                            "max_new_tokens": "26"}),
    ("live-hull-short", 24, {"schedule": "hull", "budget": "0.9", "budget_at": "20:0.5,30:1.0,35:0.7",
                             "max_new_tokens": "50"}),
    ("live-sampled", 16, {**_SAMPLED, "budget": "0.8", "budget_at": "8:0.55,16:0.95", "max_new_tokens": "40"}),
    ("sampled-repetition", 16, {**_SAMPLED, "schedule": "dense", "temperature": "2.5", "top_k": "0",
                                "repetition_penalty": "1.5", "max_new_tokens": "32"}),
    ("sampled-frequency", 16, {**_SAMPLED, "schedule": "dense", "temperature": "1.2", "top_k": "0",
                               "frequency_penalty": "0.7", "presence_penalty": "-0.3", "max_new_tokens": "40"}),
    ("entropy-long", 24, {**_SAMPLED, "schedule": "entropy", "budget": "0.75", "temperature": "1.3",
                          "max_new_tokens": "130"}),
)  # fmt: skip


def attempts(spec: tuple[str, int, dict[str, str]], text: list[int], end: set[int]) -> Iterator[Case]:
    """Cases to try for a spec: another prompt each time, and another seed."""
    name, length, options = spec
    number = [each[0] for each in SPECS].index(name)
    ends = [index for index, token in enumerate(text) if token in end]
    for attempt in range(_ATTEMPTS):
        if length < 0:
            stop = ends[(3 + number + 7 * attempt) % len(ends)] + length
            prompt = text[max(stop - 40, 0) : stop]
        else:
            start = (1 + 577 * number + 211 * attempt) % (len(text) - length)
            prompt = text[start : start + length]
        prompt = [token for token in prompt if token not in end] or [text[0]]
        seed = 1 + number + 100 * attempt
        seeds = {"?": str(seed), "?large": str((1 << 62) + 12345 * seed)}
        yield Case(name, tuple(prompt), {key: seeds.get(value, value) for key, value in options.items()})


def play_all(bundle: Path, cases: list[Case], way: Way) -> list[Played]:
    """Plays the cases in a process of their own, as the thread pool and the SIMD target are a process's."""
    job = json.dumps({"bundle": str(bundle), "way": way, "cases": [asdict(case) for case in cases]})
    environment = dict(os.environ)
    if way.mask:
        environment["SOL_RT_SIMD_TARGETS"] = str(way.mask)
    done = subprocess.run(
        [sys.executable, __file__, "--play"], input=job, env=environment, text=True, capture_output=True, check=False
    )
    if done.returncode:
        sys.exit(f"{way.name}: {done.stderr[-2000:]}")
    return [
        Played(tuple(one["tokens"]), tuple(one["actions"]), tuple(one["costs"]), one["text"])
        for one in json.loads(done.stdout)
    ]


def play_job() -> None:
    """The other side of `play_all`."""
    job = json.load(sys.stdin)
    way = Way(*job["way"])
    from sol_rt.budget.cost.model import BytesCost
    from sol_rt.generate.model import SolModel

    bundle = Bundle.open(job["bundle"])
    cost = BytesCost(bundle.config)
    model = SolModel.from_pretrained(
        bundle, provider="cpu", threads=way.threads, native_ops=way.native, cost=cost, measure_costs=False
    )
    if way.shake:
        model.engine = model.session(_Shaken(bundle, way))
    print(json.dumps([asdict(play(model, Case(**case))) for case in job["cases"]]))


class _Shaken:
    """An engine that adds noise to everything that its graphs give out. The core drives it."""

    def __init__(self, bundle: Bundle, way: Way) -> None:
        from sol_rt.generate.native.engine import Engine

        self._engine, self._way = Engine(bundle, provider="cpu", threads=way.threads, native_ops=way.native), way
        self._random = np.random.default_rng(way.seed)
        self.truncate = self._engine.truncate

    def reusable_prefix(self, length: int) -> int:
        return length

    def forward(self, tokens: Sequence[int], action: Action, *, num_logits: int = 1) -> Any:
        from sol_rt.engine.distribution import Distribution
        from sol_rt.engine.step import StepOutput

        output = self._engine.forward(tokens, action, num_logits=num_logits)
        logits = self._noisy(output.logits)
        return StepOutput(logits, self._noisy(output.hidden), Distribution(logits[-1]))

    def _noisy(self, array: np.ndarray) -> np.ndarray:
        noise = self._random.standard_normal(array.shape) * self._way.shake * array.std()
        return np.asarray(array + noise, np.float32)


def lacks(options: Mapping[str, str], config: SolConfig) -> bool:
    """True if the bundle lacks something that a case asks for."""
    schedule = options.get("schedule", "")
    if schedule.startswith("fixed:"):
        return Action.parse(schedule.removeprefix("fixed:")).variant not in config.variants
    for axis in ("kv_density", "channel_density", "bits"):
        found = [getattr(entry.action, axis) for entry in config.actions]
        if axis in options and not min(found) <= float(options[axis]) <= max(found):
            return True
    return (schedule == "sol" and config.policy is None) or (
        (schedule == "hull" or "max_loss" in options) and not config.losses_measured
    )


def choose(
    bundle: Path, text: list[int], end: set[int], names_wanted: set[str], ways: tuple[Way, ...]
) -> dict[str, str]:
    """The lines of the wanted cases by name: those on which all ways agree, then those for native operators alone."""
    tried = {spec[0]: list(attempts(spec, text, end)) for spec in SPECS if spec[0] in names_wanted}
    found: dict[str, tuple[Case, Played]] = {}
    native: dict[str, tuple[Case, Played]] = {}
    for attempt in range(_ATTEMPTS):
        names = list(tried)
        cases = [tried[name][attempt] for name in names]
        results = {way: play_all(bundle, cases, way) for way in ways}
        for index, (name, case) in enumerate(zip(names, cases, strict=True)):
            first = results[ways[0]][index]
            odd = [way for way in ways[1:] if difference(first, results[way][index])]
            enough = len(first.tokens) > int(case.options["max_new_tokens"]) // 2
            if (first.tokens[-1] in end) != name.startswith("end-token") and not (
                name.startswith("sampled") and enough
            ):
                odd = list(ways)  # the case would not show what it is there for
            print(f"{name}, attempt {attempt}: {', '.join(way.name for way in odd) or 'all agree'}", flush=True)
            if not odd and not all(way.native for way in ways):
                found[name] = case, first
            elif not any(way.native for way in odd):
                native.setdefault(name, (Case(name, case.prompt, {**case.options, "native": "1"}), first))
        tried = {name: cases for name, cases in tried.items() if name not in found}
        if all(way.native for way in ways):
            tried = {name: cases for name, cases in tried.items() if name not in native}
        if not tried:
            break
    return {name: line_of(*kept) for name, kept in {**native, **found}.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Make golden traces of a bundle.")
    parser.add_argument("bundle", type=Path, nargs="?", help="a bundle; with --tiny the one that is checked in")
    parser.add_argument("-o", "--output", type=Path, default=HERE, help=f"folder for {FILE}")
    parser.add_argument("--tiny", action="store_true", help="train and write the tiny bundle first")
    parser.add_argument("--only", type=lambda value: set(value.split(",")), help="names of cases, with commas")
    parser.add_argument("--native", action="store_true", help="compare native operators alone; marks all cases")
    parser.add_argument("--play", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.play:
        play_job()
        return
    bundle = arguments.bundle or HERE / "tiny"
    if arguments.tiny:
        from golden.tiny_model import write_tiny

        shutil.rmtree(bundle, ignore_errors=True)
        write_tiny(bundle)
    from golden.stories import stories

    opened = Bundle.open(bundle)
    source, tokenizer, end = stories(2), opened.tokenizer(), opened.config.model.eos_token_ids
    text: list[int] = []
    while len(text) < 8000:
        text += [*tokenizer.encode(next(source), add_special_tokens=False), end[-1]]
    path, names = arguments.output / FILE, [spec[0] for spec in SPECS]
    lines = (
        {case.name: line_of(case, played) for case, played in read_cases(path)}
        if arguments.only and path.exists()
        else {}
    )
    wanted = {name for name, _, options in SPECS if not lacks(options, opened.config)}
    ways = tuple(way for way in WAYS if way.native) if arguments.native else WAYS
    lines.update(choose(bundle, text, set(end), arguments.only or wanted, ways))
    arguments.output.mkdir(parents=True, exist_ok=True)
    comment = f"golden traces of {opened.config.model.name}, sol_config.json {opened.identity}"
    write_cases(path, [comment], [lines[name] for name in names if name in lines])
    print(f"{path}: {len(lines)} cases; left out: {', '.join(set(names) - set(lines)) or 'none'}")


if __name__ == "__main__":
    main()
