"""Measures speed in llama-bench's conventions.

`pp512` processes a prompt of 512 tokens. `tg128 @ d2048` generates 128 tokens after 2048 tokens in the cache.

    from sol_rt.evaluation.speed.bench import Bench, plan
    bench = Bench(model)
    for test in plan(model, n_depth=(0, 2048)).tests:
        print(bench.run(test, repetitions=5).as_json())

A `tg` test times the decode steps of a greedy generation, with all that it does for a token.
A `pp` test times the prefill, dense unless the model has another variant for it, and the logits of the last token. Not
timed are opening the model, filling the cache to the depth, and the warm-up repetition. As in llama-bench, prompts are
random tokens, and an end token does not end a generation.
"""

from __future__ import annotations

import datetime
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from sol_rt import __version__
from sol_rt.budget.cost.model import BytesCost
from sol_rt.budget.dial import Dial
from sol_rt.budget.schedules import is_constant
from sol_rt.bundle.actions import Action
from sol_rt.engine.hardware import peak_rss_mb, processor_name
from sol_rt.errors import UsageError
from sol_rt.generate.model import SolModel
from sol_rt.progress import Progress, silent

import onnxruntime as ort

BUDGETS = (1.0, 0.6, 0.4)
_GREEDY = {"do_sample": False, "repetition_penalty": 1.0, "eos_token_id": [], "stop_strings": []}


@dataclass(frozen=True)
class Case:
    """One row to measure: a prompt or a generation, on top of `n_depth` tokens in the cache.

    Attributes:
        n_prompt: tokens of the prompt; 0 for a generation.
        n_gen: decode steps; 0 for a prompt.
        n_depth: tokens in the cache at the start.
        schedule: name of the schedule; for a prompt `dense`, or the key of the variant that runs it.
        budget: requested budget; None for a prompt and for a fixed action.
    """

    n_prompt: int
    n_gen: int
    n_depth: int
    schedule: str = "dense"
    budget: float | None = None

    @property
    def name(self) -> str:
        """The test's name in llama-bench's notation."""
        name = f"pp{self.n_prompt}" if self.n_prompt else f"tg{self.n_gen}"
        return f"{name} @ d{self.n_depth}" if self.n_depth else name

    @property
    def label(self) -> str:
        """The name, followed by schedule and budget if the test is a generation."""
        if self.n_prompt:
            return self.name
        return f"{self.name}, {self.schedule}" + ("" if self.budget is None else f", budget {self.budget:g}")

    @property
    def weight(self) -> float:
        """About how long a repetition takes, in decode steps, for the progress bar."""
        return self.n_gen + 0.1 * self.n_prompt

    @property
    def dial(self) -> Dial:
        return Dial(budget=1.0 if self.budget is None else self.budget, schedule=self.schedule)


@dataclass(frozen=True)
class Plan:
    """Tests in llama-bench's order, and the names of tests that do not fit into the model's context."""

    tests: tuple[Case, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Setup:
    """The software, model and machine that rows were measured with.

    Attributes:
        version, onnxruntime: versions of sol_rt and ONNX Runtime.
        cpu_info: name of the processor.
        model: name of the model in the bundle's config.
        model_filename: the bundle folder.
        model_size: bytes of the weights file.
        provider: `cpu`, `cuda` or `webgpu`.
        device: name of the GPU, or of the processor if it computes.
        kernels: `native`, or `onnxruntime` if the graphs ran on standard operators.
        n_threads: CPU threads.
        cost_model: unit of the cost that budgets are shares of: `measured` (milliseconds) or `bytes`.
        prefill: key of the variant that runs prompts.
        read_gb_per_second: the memory's read bandwidth in 10^9 bytes per second; None if it was not measured.
    """

    version: str
    onnxruntime: str
    cpu_info: str
    model: str
    model_filename: str
    model_size: int
    provider: str
    device: str
    kernels: str
    n_threads: int
    cost_model: str
    prefill: str
    read_gb_per_second: float | None


@dataclass(frozen=True)
class Row:
    """A measured test.

    Attributes:
        setup, test: what was measured, and with what.
        achieved_budget: cost of all decode steps divided by their dense cost; None for a prompt.
        actions: number of decode steps by action tag, over all repetitions.
        test_time: start of the test, ISO 8601.
        samples_ns: nanoseconds of each repetition.
        bytes_read: bytes of weights, cache entries and key codes that the decode steps of all repetitions read,
            including the policy, by the bytes model (docs/reference/bundle-details.md section 4); None for a prompt.
        peak_rss_mb: peak resident memory of the process so far, in 10^6 bytes.
    """

    setup: Setup
    test: Case
    achieved_budget: float | None
    actions: dict[str, int]
    test_time: str
    samples_ns: tuple[int, ...]
    bytes_read: float | None
    peak_rss_mb: float

    @property
    def samples_ts(self) -> list[float]:
        """Tokens per second of each repetition."""
        count = self.test.n_prompt or self.test.n_gen
        return [count * 1e9 / ns for ns in self.samples_ns]

    @property
    def avg_ts(self) -> float:
        return statistics.fmean(self.samples_ts)

    @property
    def stddev_ts(self) -> float:
        return _deviation(self.samples_ts)

    @property
    def gb_per_second(self) -> float | None:
        """`bytes_read` divided by the time of all repetitions, in 10^9 bytes per second."""
        return None if self.bytes_read is None else self.bytes_read / sum(self.samples_ns)

    @property
    def bandwidth_share(self) -> float | None:
        """`gb_per_second` as a share of the memory's read bandwidth; over 1 if CPU caches hold part of the model."""
        achieved, limit = self.gb_per_second, self.setup.read_gb_per_second
        return None if achieved is None or limit is None else achieved / limit

    def as_json(self) -> dict[str, Any]:
        """The row as a JSON object, with llama-bench's keys for everything that llama-bench reports."""
        return {
            **asdict(self.setup),
            "test": self.test.name,
            "n_prompt": self.test.n_prompt,
            "n_gen": self.test.n_gen,
            "n_depth": self.test.n_depth,
            "schedule": self.test.schedule,
            "budget": self.test.budget,
            "achieved_budget": self.achieved_budget,
            "actions": self.actions,
            "test_time": self.test_time,
            "avg_ns": statistics.fmean(self.samples_ns),
            "stddev_ns": _deviation(self.samples_ns),
            "avg_ts": self.avg_ts,
            "stddev_ts": self.stddev_ts,
            "samples_ns": list(self.samples_ns),
            "samples_ts": self.samples_ts,
            "gb_per_second": self.gb_per_second,
            "bandwidth_share": self.bandwidth_share,
            "peak_rss_mb": self.peak_rss_mb,
        }


def plan(
    model: SolModel,
    *,
    n_prompt: Sequence[int] = (512,),
    n_gen: Sequence[int] = (128,),
    n_depth: Sequence[int] = (0,),
    budgets: Sequence[float] | None = None,
    schedules: Sequence[str] = (),
) -> Plan:
    """Lists the tests of every combination, one depth after another: prompts first, then generations.

    Args:
        model: the model to measure.
        n_prompt, n_gen: tokens of prompts and of generations; 0 for none.
        n_depth: tokens in the cache at the start.
        budgets: budgets of every schedule that takes one; default: BUDGETS.
        schedules: `sol`, `hull`, `uniform`, `entropy`, `random`, `fixed:TAG` or `dense`; default: each
            budget's default.

    Raises UsageError for counts below 0, a depth that fills the context, schedules that the bundle lacks, and a plan
    without any test. Also for budgets that are out of range or that no schedule takes.
    """
    for name, counts in (("n-prompt", n_prompt), ("n-gen", n_gen), ("n-depth", n_depth)):
        if least := [count for count in counts if count < 0]:
            raise UsageError(f"--{name}: got {least[0]}, expected 0 or more tokens")
    limit = model.engine.max_context
    if beyond := [depth for depth in n_depth if depth >= limit]:
        raise UsageError(f"--n-depth: got {beyond[0]}, expected less than {limit}, the model's context")
    dials = _dials(model, budgets, schedules)
    prefill = model.prefill
    prompted = "dense" if prefill == model.bundle.config.dense else prefill.variant
    tests: list[Case] = []
    left_out: list[Case] = []
    for depth in n_depth:
        wanted = [Case(count, 0, depth, prompted) for count in n_prompt if count]
        wanted += [Case(0, count, depth, *dial) for count in n_gen if count for dial in dials]
        for test in wanted:
            fits = max(depth, 1 if test.n_gen else 0) + test.n_prompt + test.n_gen <= limit
            (tests if fits else left_out).append(test)
    if not tests:
        what = f"all tests exceed the model's context of {limit} tokens" if left_out else "no tokens to process"
        raise UsageError(f"bench: {what}; give other -p, -n or -d")
    return Plan(tuple(tests), tuple(dict.fromkeys(test.name for test in left_out)))


def _dials(
    model: SolModel, budgets: Sequence[float] | None, schedules: Sequence[str]
) -> list[tuple[str, float | None]]:
    """Pairs of schedule and budget: every schedule, or the bundle's own, with every budget that it takes."""
    if budgets is not None and schedules and all(map(is_constant, schedules)):
        raise UsageError(f"--schedule {', '.join(schedules)}: fixes the action; leave out --budget")
    wanted = BUDGETS if budgets is None else budgets
    dials: list[tuple[str, float | None]] = []
    for name in schedules or (model.default_schedule(),):
        if is_constant(name):
            dials.append((name, 1.0 if name == "dense" else None))
        else:
            dials += [(name, budget) for budget in wanted]
    for name, budget in dials:
        model.check(Case(0, 1, 0, name, budget).dial)  # raises now what would otherwise fail after minutes
    return dials


class Bench:
    """Measures tests on an open model and overwrites the model's cache.

    The cache is filled dense to each depth once. Every repetition starts from that state, so that no test reads entries
    that cheap steps of another test wrote.

    Args:
        model: the model to measure.
        read_gb_per_second: the memory's read bandwidth in 10^9 bytes per second; None if it is not known.
    """

    def __init__(self, model: SolModel, read_gb_per_second: float | None = None) -> None:
        self._model, self._engine = model, model.engine
        config = model.bundle.config
        self._bytes = BytesCost(config)
        self._tokens = np.random.default_rng(0).integers(0, config.model.vocab_size, self._engine.max_context).tolist()
        self.setup = Setup(
            version=__version__,
            onnxruntime=ort.__version__,
            cpu_info=processor_name(),
            model=config.model.name,
            model_filename=str(model.bundle.path),
            model_size=config.files[config.weights_file].bytes,
            **model.where,
            kernels="native" if model.native else "onnxruntime",
            n_threads=model.provider.threads,
            cost_model=model.cost.name,
            prefill=model.prefill.variant,
            read_gb_per_second=read_gb_per_second,
        )

    def run(self, test: Case, repetitions: int, progress: Progress = silent) -> Row:
        """Measures one test. Afterwards the cache holds `test.n_depth` tokens.

        Args:
            test: a test of a `plan`.
            repetitions: timed runs, 1 or more; an untimed run comes first.
            progress: called with the test's label, runs done, and runs in total; in turn, over all tests.

        Raises UsageError, NumericError, SolError.
        """
        return self.run_in_turn((test,), repetitions, progress)[0]

    def run_in_turn(
        self,
        tests: Sequence[Case],
        repetitions: int,
        progress: Progress = silent,
    ) -> list[Row]:
        """Measures tests of one depth in turn: one repetition of each test, then the next repetition of each.

        Other work on the machine then slows all tests alike. The ratio of two tests within one repetition is therefore
        more reliable than their separate times. Arguments and errors are those of `run`.
        """
        if repetitions < 1:
            raise UsageError(f"--repetitions: got {repetitions}, expected 1 or more")
        test_time = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        samples: list[list[_Sample]] = [[] for _ in tests]
        for done in range(repetitions + 1):
            for number, (test, own) in enumerate(zip(tests, samples, strict=True)):
                before = done * len(tests) + number
                progress(test.label, before, (repetitions + 1) * len(tests))
                if not done and test.n_gen:
                    self._open(test)
                with self._at(test.n_depth):
                    sample = self._prompt(test) if test.n_prompt else self._generation(test)
                if done:  # the first run is the warm-up
                    own.append(sample)
                progress(test.label, before + 1, (repetitions + 1) * len(tests))
        return [self._row(test, test_time, own) for test, own in zip(tests, samples, strict=True)]

    def _row(self, test: Case, test_time: str, samples: Sequence[_Sample]) -> Row:
        actions: Counter[str] = Counter()
        for sample in samples:
            actions.update(sample.actions)
        return Row(
            setup=self.setup,
            test=test,
            # every repetition has the same dense cost, so the mean is exact
            achieved_budget=statistics.fmean(sample.achieved for sample in samples) if test.n_gen else None,
            actions=dict(actions),
            test_time=test_time,
            samples_ns=tuple(sample.ns for sample in samples),
            bytes_read=sum(sample.bytes_read for sample in samples) if test.n_gen else None,
            peak_rss_mb=peak_rss_mb(),
        )

    @contextmanager
    def _at(self, depth: int) -> Iterator[None]:
        """Fills the cache dense with exactly the first `depth` tokens, and drops later entries at the end."""
        engine = self._engine
        if engine.owner is not self:  # someone else filled the cache
            engine.reset()
        engine.owner = self
        if depth:  # the last token runs anew, and before it all that a rewind left undone
            engine.truncate(min(depth - 1, engine.length))
            engine.forward(self._tokens[engine.length : depth], self._model.cost.dense_action)
        else:
            engine.reset()
        try:
            yield
        finally:
            engine.truncate(min(depth, engine.length))
            engine.owner = self

    def _open(self, test: Case) -> None:
        """Makes the sessions that the steps of a test may need, so that none is made while it is timed.

        On a GPU the repetition that is not timed makes them.
        """
        if is_constant(test.schedule) or test.budget == 1.0 or self._model.provider.gpu is not None:
            return
        spare = self._model.session()
        for variant in self._model.bundle.config.variants.values():
            spare.forward([0], Action(1.0, variant.channel_density, variant.bits))
            spare.reset()

    def _prompt(self, test: Case) -> _Sample:
        tokens = self._tokens[test.n_depth : test.n_depth + test.n_prompt]
        start = time.perf_counter_ns()
        self._engine.forward(tokens, self._model.prefill)
        return _Sample(time.perf_counter_ns() - start)

    def _generation(self, test: Case) -> _Sample:
        prompt = self._tokens[: max(test.n_depth, 1)]
        dial = {"schedule": test.schedule, "budget": None if is_constant(test.schedule) else test.budget}
        settings: dict[str, Any] = {**_GREEDY, **dial, "max_new_tokens": test.n_gen + 1, "reuse_cache": True}
        stream = self._model.stream(prompt, **settings)
        next(stream)  # of the last token of the prompt, which runs again
        start = time.perf_counter_ns()
        taken = list(stream)
        elapsed = time.perf_counter_ns() - start
        read = sum(self._bytes.step(token.action, len(prompt) + index) for index, token in enumerate(taken))
        if test.schedule == "sol" and test.budget != 1.0:
            read += len(taken) * self._bytes.policy()
        return _Sample(elapsed, read, taken[-1].achieved_budget, dict(Counter(token.action.tag for token in taken)))


@dataclass(frozen=True)
class _Sample:
    """One repetition: time in ns, bytes read, achieved budget, decode steps by action tag.

    A prompt has no decode steps; all its fields but the time are 0 or empty.
    """

    ns: int
    bytes_read: float = 0.0
    achieved: float = 0.0
    actions: dict[str, int] = field(default_factory=dict)


def _deviation(values: Sequence[float]) -> float:
    """Standard deviation of a sample; 0 for one value, as in llama-bench."""
    return statistics.stdev(values) if len(values) > 1 else 0.0
