"""`sol-rt eval`: schedules side by side on held-out text, at matched cost."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

from sol_rt.cli import options
from sol_rt.cli.console import note, print_json, progress
from sol_rt.cli.lists import numbers, parts
from sol_rt.errors import UsageError


class Format(str, Enum):
    """How the result is written."""

    md = "md"
    json = "json"


WHAT, HOW = "What is measured", "Intervals"


def evaluate(
    file: Annotated[
        list[Path] | None,
        options.option("-f", "--file", env=False, help="Held-out text; may be given several times.", panel=WHAT),
    ] = None,
    model: options.Model = None,
    ctx_size: Annotated[
        list[str] | None,
        options.option("-c", "--ctx-size", env=False, help="Tokens a window. Default: 512,2048,4096,8000.", panel=WHAT),
    ] = None,
    chunks: Annotated[
        int | None, options.option("--chunks", env=False, min=1, help="Windows of each size at most.", panel=WHAT)
    ] = None,
    scored: Annotated[
        int | None,
        options.option(
            "--scored",
            env=False,
            min=1,
            help="Tokens scored at the end of a window. Default: its second half, at most 256.",
            panel=WHAT,
        ),
    ] = None,
    budget: Annotated[
        list[str] | None,
        options.option(
            "-b", "--budget", env=False, help="Shares of the dense cost. Default: 0.4,0.5,0.6,0.7.", panel=WHAT
        ),
    ] = None,
    schedules: Annotated[
        list[str] | None,
        options.option(
            "--schedules",
            env=False,
            help="dense, static, uniform, random, entropy, sol. Default: all that the bundle has.",
            panel=WHAT,
        ),
    ] = None,
    random: Annotated[
        int,
        options.option("--random", env=False, min=1, help="Random schedules of which the best is taken.", panel=WHAT),
    ] = 100,
    search: Annotated[
        int,
        options.option(
            "--search-chunks", env=False, min=1, help="Windows that the best of them is chosen on.", panel=WHAT
        ),
    ] = 1,
    refresh: options.Refresh = None,
    state: Annotated[
        Path | None,
        options.option("--state", env=False, help="Keep results in this file; a rerun goes on where it stopped."),
    ] = None,
    draws: Annotated[
        int, options.option("--draws", env=False, min=100, help="Bootstrap draws of an interval.", panel=HOW)
    ] = 2000,
    resample: Annotated[
        str, options.option("--resample", env=False, help="windows, or blocks of 64 tokens.", panel=HOW)
    ] = "windows",
    seed: Annotated[int, options.option("--seed", env=False, min=0, help="Seed of the draws.", panel=HOW)] = 0,
    provider: options.Provider = "auto",
    device: options.Device = 0,
    threads: options.Threads = None,
    native_ops: options.NativeOps = True,
    output: Annotated[Format, options.option("-o", "--output-format", env=False, help="md or json.")] = Format.md,
    json: Annotated[bool, options.option("--json", env=False, help="The same as -o json.")] = False,
    html: Annotated[
        Path | None, options.option("--html", env=False, help="Draw quality against cost on a page.")
    ] = None,
    debug: options.Debug = False,
) -> None:
    """Compare schedules on held-out text at matched cost: perplexity, divergence from dense, 95% intervals."""
    from sol_rt.cli.loading import load, read_text
    from sol_rt.evaluation.held_out import BUDGETS, SCHEDULES, SIZES, Plan, measure, state_settings
    from sol_rt.evaluation.report import RESAMPLED, Resampling, report_of, size_report
    from sol_rt.evaluation.state import State
    from sol_rt.evaluation.tables import table_lines

    if not file:
        raise UsageError("--file: got none, expected a text that the policy was not trained on")
    if resample not in RESAMPLED:
        raise UsageError(f"--resample: got {resample!r}, expected one of {', '.join(RESAMPLED)}")
    texts = {str(path): read_text(path) for path in file}
    loaded = load(model, provider=provider, threads=threads, native_ops=native_ops, device=device)
    config = loaded.bundle.config
    given = tuple(dict.fromkeys(parts(schedules)))
    possible = tuple(name for name in SCHEDULES if name != "sol" or config.policy is not None)
    plan = Plan(
        sizes=tuple(dict.fromkeys(numbers("--ctx-size", ctx_size, int))) or SIZES,
        budgets=tuple(sorted(set(numbers("--budget", budget, float)))) or BUDGETS,
        schedules=given or possible,
        chunks=chunks,
        scored=scored,
        refresh=config.refresh.default if refresh is None else refresh,
        random=random,
        searched=search,
    )
    plan.check(config)
    resampling = Resampling(resample, draws, seed)
    results = State(state, state_settings(loaded, plan))
    try:
        with progress() as report:
            sizes = [size_report(runs, plan, resampling) for runs in measure(loaded, texts, plan, results, report)]
    except KeyboardInterrupt:
        if state is not None:
            note(f"{state}: holds what was measured; the same command goes on from there")
        raise
    evaluation = report_of(loaded, list(texts), plan, resampling, sizes)
    if html is not None:
        from sol_rt.evaluation.page import render_evaluation_html

        html.write_text(render_evaluation_html(evaluation), encoding="utf-8")
        note(f"{html}: written")
    if json or output is Format.json:
        print_json(evaluation.as_json())
    else:
        for line in table_lines(evaluation):
            print(line)
