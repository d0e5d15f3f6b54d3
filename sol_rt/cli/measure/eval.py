"""`sol-rt eval` compares schedules on held-out text at matched cost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from sol_rt.cli import options
from sol_rt.cli.console import note, print_json, progress
from sol_rt.cli.lists import numbers, parts
from sol_rt.errors import UsageError

if TYPE_CHECKING:
    from sol_rt.evaluation.quality.bootstrap import Resampling
    from sol_rt.evaluation.quality.held_out import Plan
    from sol_rt.generate.model import SolModel


WHAT, HOW = "What to measure", "Confidence intervals"


def evaluate(
    file: Annotated[
        list[Path] | None,
        options.option("-f", "--file", env=False, help="Held-out text; - is stdin; may be repeated.", panel=WHAT),
    ] = None,
    model: options.Model = None,
    ctx_size: Annotated[
        list[str] | None,
        options.option(
            "-c",
            "--ctx-size",
            env=False,
            help="Window sizes in tokens. Default: those of 512,2048,4096,8000 that fit the model's context.",
            panel=WHAT,
        ),
    ] = None,
    chunks: Annotated[
        int | None,
        options.option("--chunks", env=False, min=1, help="Largest number of windows of each size.", panel=WHAT),
    ] = None,
    scored: Annotated[
        int | None,
        options.option(
            "--scored",
            env=False,
            min=1,
            help="Tokens to score at the end of a window. Default: its second half, at most 256.",
            panel=WHAT,
        ),
    ] = None,
    budget: Annotated[
        list[str] | None,
        options.option(
            "-b",
            "--budget",
            env=False,
            help="Budgets, as shares (0 to 1) of the dense cost. Default: 0.4,0.5,0.6,0.7.",
            panel=WHAT,
        ),
    ] = None,
    schedules: Annotated[
        list[str] | None,
        options.option(
            "--schedules",
            env=False,
            help="Schedules: dense, static, hull, uniform, random, entropy, sol, oracle. Default: all that the bundle "
            "can run, without oracle.",
            panel=WHAT,
        ),
    ] = None,
    random: Annotated[
        int,
        options.option(
            "--random", env=False, min=1, help="Number of random schedules, of which the best is chosen.", panel=WHAT
        ),
    ] = 100,
    search: Annotated[
        int,
        options.option(
            "--search-chunks",
            env=False,
            min=1,
            help="Number of windows on which the best random schedule is chosen.",
            panel=WHAT,
        ),
    ] = 1,
    state: Annotated[
        Path | None,
        options.option("--state", env=False, help="Store results in this file, so that a stopped run can continue."),
    ] = None,
    draws: Annotated[
        int, options.option("--draws", env=False, min=100, help="Number of bootstrap draws.", panel=HOW)
    ] = 2000,
    resample: Annotated[
        str,
        options.option("--resample", env=False, help="Bootstrap unit: windows, or blocks (of 64 tokens).", panel=HOW),
    ] = "windows",
    seed: Annotated[int, options.option("--seed", env=False, min=0, help="Seed of the bootstrap.", panel=HOW)] = 0,
    provider: options.Provider = "auto",
    device: options.Device = 0,
    threads: options.Threads = None,
    native_ops: options.NativeOps = True,
    verify: options.Verify = True,
    output: Annotated[
        options.TableFormat, options.option("-o", "--output-format", env=False, help="Output format: md or json.")
    ] = options.TableFormat.md,
    json: Annotated[bool, options.option("--json", env=False, help="Same as -o json.")] = False,
    html: Annotated[
        Path | None, options.option("--html", env=False, help="Also draw loss against cost as an HTML page.")
    ] = None,
    png: Annotated[
        Path | None, options.option("--png", env=False, help="Also draw loss against cost as a PNG picture.")
    ] = None,
    debug: options.Debug = False,
) -> None:
    """Compare schedules at matched cost on held-out text (-f), with 95% intervals."""
    from sol_rt.cli.loading import load, read_text
    from sol_rt.evaluation.quality.bootstrap import RESAMPLED, Resampling

    if not file:
        raise UsageError("eval: expected --file (text that no policy was trained on)")
    if resample not in RESAMPLED:
        raise UsageError(f"--resample: got {resample!r}, expected one of {', '.join(RESAMPLED)}")
    for option, path in (("--html", html), ("--png", png)):
        if path is not None:
            _check_drawing(option, path)
    resampling = Resampling(resample, draws, seed)
    names = tuple(dict.fromkeys(parts(schedules)))
    budgets = tuple(sorted(set(numbers("--budget", budget, float))))
    as_json = json or output is options.TableFormat.json
    texts = {str(path): read_text(path) for path in file}
    sizes = tuple(dict.fromkeys(numbers("--ctx-size", ctx_size, int)))
    machine: dict[str, Any] = {"provider": provider, "threads": threads, "native_ops": native_ops, "device": device}
    loaded = load(model, **machine, verify=verify, measure_costs=False)
    try:
        plan = _plan(loaded, sizes, budgets, names, chunks, scored, random, search)
        _held_out(loaded, texts, plan, resampling, state, html, png, as_json)
    except KeyboardInterrupt:
        if state is not None:
            note(f"{state}: holds the results so far; run the same command again to continue")
        raise


def _check_drawing(option: str, path: Path) -> None:
    """Raises UsageError or SolError, before anything is measured, if the drawing cannot be written later."""
    from sol_rt.cli.loading import require_packages

    if not path.parent.is_dir():
        raise UsageError(f"{option} {path}: no folder {path.parent}; make it first")
    if path.is_dir():
        raise UsageError(f"{option} {path}: got a folder, expected a file")
    require_packages("plot", what=option)


def _plan(
    model: SolModel,
    sizes: tuple[int, ...],
    budgets: tuple[float, ...],
    schedules: tuple[str, ...],
    chunks: int | None,
    scored: int | None,
    random: int,
    searched: int,
) -> Plan:
    from sol_rt.budget.dial import KEEP_LOSS
    from sol_rt.evaluation.quality.held_out import BUDGETS, SCHEDULES, SIZES, Plan

    config = model.bundle.config
    limit = config.model.max_context
    lacking = {"sol"} if config.policy is None else set()
    if not config.losses_measured:
        lacking.update(KEEP_LOSS)
    possible = tuple(name for name in SCHEDULES if name not in lacking)
    plan = Plan(
        sizes=sizes or tuple(size for size in SIZES if size <= limit) or (limit,),
        budgets=budgets or BUDGETS,
        schedules=schedules or possible,
        chunks=chunks,
        scored=scored,
        random=random,
        searched=searched,
    )
    plan.check(config)
    return plan


def _held_out(
    model: SolModel,
    texts: dict[str, str],
    plan: Plan,
    resampling: Resampling,
    state: Path | None,
    html: Path | None,
    png: Path | None,
    as_json: bool,
) -> None:
    from sol_rt.atomic_write import write_bytes, write_text
    from sol_rt.evaluation.quality.held_out import measure, state_settings
    from sol_rt.evaluation.quality.state import State
    from sol_rt.evaluation.report.report import report_of, size_report
    from sol_rt.evaluation.report.tables import table_lines

    results = State(state, state_settings(model, plan.block))
    with progress() as report:
        sizes = [size_report(runs, plan, resampling) for runs in measure(model, texts, plan, results, report)]
    evaluation = report_of(model, list(texts), plan, resampling, sizes)
    if html is not None:
        from sol_rt.evaluation.pages.evaluation import render_evaluation_html

        write_text(html, render_evaluation_html(evaluation))
        note(f"{html}: written")
    if png is not None:
        from sol_rt.evaluation.pages.evaluation import render_evaluation_png

        write_bytes(png, render_evaluation_png(evaluation))
        note(f"{png}: written")
    provider = {"provider": model.provider.name}
    _print({**evaluation.as_json(), **provider} if as_json else table_lines(evaluation))


def _print(result: dict[str, Any] | Iterator[str]) -> None:
    if isinstance(result, dict):
        print_json(result)
        return
    for line in result:
        print(line)
