"""`sol-rt bench` measures speed in llama-bench's conventions."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Annotated

from sol_rt.cli import options
from sol_rt.cli.console import note, print_json, progress
from sol_rt.cli.lists import numbers, parts
from sol_rt.errors import SolError

if TYPE_CHECKING:
    from sol_rt.evaluation.speed.bench import Case, Row, Setup


COUNTS = "Tests: each option takes a comma-separated list, or may be repeated"


def bench(
    model: options.Model = None,
    n_prompt: Annotated[
        list[str] | None,
        options.option(
            "-p",
            "--n-prompt",
            env=False,
            help="Prompt lengths in tokens; 0 for no prompt test. Default: 512.",
            panel=COUNTS,
        ),
    ] = None,
    n_gen: Annotated[
        list[str] | None,
        options.option(
            "-n", "--n-gen", env=False, help="Tokens to generate; 0 for no generation test. Default: 128.", panel=COUNTS
        ),
    ] = None,
    n_depth: Annotated[
        list[str] | None,
        options.option(
            "-d", "--n-depth", env=False, help="Tokens in the cache before a test starts. Default: 0.", panel=COUNTS
        ),
    ] = None,
    budget: Annotated[
        list[str] | None,
        options.option(
            "-b",
            "--budget",
            help="Budgets, as shares (0 to 1) of a dense step's cost. Default: 1.0,0.6,0.4.",
            panel=COUNTS,
        ),
    ] = None,
    schedule: Annotated[
        list[str] | None,
        options.option(
            "--schedule",
            help="Schedules: sol, hull, uniform, entropy, random, fixed:TAG or dense. Default: sol if the bundle has a "
            "policy, else hull.",
            panel=COUNTS,
        ),
    ] = None,
    repetitions: Annotated[
        int, options.option("-r", "--repetitions", env=False, min=1, help="Timed runs per test, after one warm-up run.")
    ] = 5,
    interleave: Annotated[
        bool,
        options.option(
            "--interleave",
            env=False,
            help="Run all tests of a depth in turn, which gives reliable ratios on a busy machine.",
        ),
    ] = False,
    prefill: options.Prefill = None,
    provider: options.Provider = "auto",
    device: options.Device = 0,
    threads: options.Threads = None,
    native_ops: options.NativeOps = True,
    verify: options.Verify = True,
    output: Annotated[
        options.TableFormat, options.option("-o", "--output", env=False, help="Output format: md or json.")
    ] = options.TableFormat.md,
    json: Annotated[bool, options.option("--json", env=False, help="Same as -o json.")] = False,
    debug: options.Debug = False,
) -> None:
    """Measure the speed of prompts (pp) and generation (tg) at depths and budgets, as llama-bench does.

    The time of a generation includes schedule, controller, decode steps and the choice of each token, but no text.
    """
    prompts = numbers("--n-prompt", n_prompt, int) or [512]
    generations = numbers("--n-gen", n_gen, int) or [128]
    depths = numbers("--n-depth", n_depth, int) or [0]
    budgets = numbers("--budget", budget, float) or None

    from sol_rt.cli.loading import load
    from sol_rt.evaluation.speed.bench import Bench, plan
    from sol_rt.progress import Stages

    loaded = load(
        model,
        provider=provider,
        threads=threads,
        native_ops=native_ops,
        device=device,
        prefill=prefill,
        verify=verify,
    )
    planned = plan(
        loaded,
        n_prompt=prompts,
        n_gen=generations,
        n_depth=depths,
        budgets=budgets,
        schedules=parts(schedule),
    )
    for name in planned.left_out:
        note(f"{name}: left out, because the model's context is {loaded.engine.max_context} tokens")
    measuring = Bench(loaded, _read_bandwidth(loaded.provider.name, loaded.provider.threads))
    as_json = json or output is options.TableFormat.json
    rows: list[Row] = []
    if not as_json:
        _print_header(measuring.setup)
    by_depth = itertools.groupby(planned.tests, lambda test: test.n_depth)
    rounds = [tests for _, depth in by_depth for tests in _rounds(list(depth), interleave)]
    try:
        with progress(timed=True) as report:
            stages = Stages(report, {_label(tests): sum(test.weight for test in tests) for tests in rounds})
            for tests in rounds:
                with stages(_label(tests)) as stage:
                    measured = measuring.run_in_turn(tests, repetitions, stage)
                rows += measured
                if not as_json:  # now, so that a run that is stopped leaves its rows
                    with report.paused():
                        for row in measured:
                            _print_row(row)
    finally:
        if as_json and rows:
            print_json([row.as_json() for row in rows])


def _rounds(tests: list[Case], interleave: bool) -> list[list[Case]]:
    """The tests of a depth, as they are run: in turn all together, else one by one."""
    return [tests] if interleave else [[test] for test in tests]


def _label(tests: list[Case]) -> str:
    """Names tests that run in turn."""
    return tests[0].label if len(tests) == 1 else f"{len(tests)} tests at depth {tests[0].n_depth}"


def _read_bandwidth(provider: str, threads: int) -> float | None:
    """Read bandwidth of the memory in 10^9 bytes per second; None, with a note, if it was not measured."""
    from sol_rt.evaluation.speed.bandwidth import measure_apart

    if provider != "cpu":
        note(f"read bandwidth: not measured, because {provider} has its own memory")
        return None
    try:
        return measure_apart(threads)
    except SolError as error:
        note(str(error))
        return None


_WIDTHS = {
    "model": 20,
    "provider": 8,
    "threads": 7,
    "test": 14,
    "schedule": 18,
    "budget": 13,
    "achieved": 15,
    "t/s": 17,
    "GB/s": 6,
    "of read bandwidth": 17,
    "peak RSS, MB": 12,
}
_LEFT = ("model", "provider", "schedule")
_OF_DENSE = ("budget", "achieved")


def _print_header(setup: Setup) -> None:
    from sol_rt.budget.cost.model import in_unit

    read = "not measured" if setup.read_gb_per_second is None else f"{setup.read_gb_per_second:.1f} GB/s"
    print(
        f"{setup.cpu_info}, {setup.n_threads} threads, read bandwidth {read}; sol_rt {setup.version}, onnxruntime "
        f"{setup.onnxruntime}, {setup.kernels} kernels; budgets are shares of dense, {in_unit(setup.cost_model)}\n"
    )
    unit = in_unit(setup.cost_model).split()[-1]
    _print_cells({name: f"{name}, {unit}" if name in _OF_DENSE else name for name in _WIDTHS})
    rules = [("-" if name in _LEFT else ":").rjust(width, "-") for name, width in _WIDTHS.items()]
    print(f"| {' | '.join(rules)} |", flush=True)


def _print_row(row: Row) -> None:
    setup = row.setup
    cells = {
        "model": setup.model,
        "provider": setup.provider,
        "threads": str(setup.n_threads),
        "test": row.test.name,
        "schedule": row.test.schedule,
        "budget": _cell(row.test.budget, ".2f"),
        "achieved": _cell(row.achieved_budget, ".3f"),
        "t/s": f"{row.avg_ts:.2f} ± {row.stddev_ts:.2f}",
        "GB/s": _cell(row.gb_per_second, ".1f"),
        "of read bandwidth": _cell(row.bandwidth_share, ".0%"),
        "peak RSS, MB": f"{row.peak_rss_mb:.0f}",
    }
    _print_cells(cells)


def _print_cells(cells: dict[str, str]) -> None:
    padded = [text.ljust(_WIDTHS[name]) if name in _LEFT else text.rjust(_WIDTHS[name]) for name, text in cells.items()]
    print(f"| {' | '.join(padded)} |", flush=True)


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
