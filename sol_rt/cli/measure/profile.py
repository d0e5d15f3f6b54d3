"""`sol-rt profile` measures what every action costs on this device."""

from __future__ import annotations

import math
from dataclasses import asdict
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any

from sol_rt.cli import options
from sol_rt.cli.console import note, print_json, print_table, progress

if TYPE_CHECKING:
    from sol_rt.budget.cost.model import CostModel
    from sol_rt.bundle.actions import Action


_TUNE_SECONDS = 10.0


def profile(
    model: options.Model = None,
    contexts: Annotated[
        str, options.option("--contexts", env=False, help="Context lengths to measure at, in tokens, comma-separated.")
    ] = "64,512,2048,8000",
    repeats: Annotated[
        int, options.option("-r", "--repeats", env=False, min=3, help="Timed steps of each action at each context.")
    ] = 15,
    seconds: Annotated[
        float,
        options.option(
            "--seconds", env=False, min=1, help="Time limit in seconds; reduces repeats and leaves out long contexts."
        ),
    ] = 60,
    provider: options.Provider = "auto",
    device: options.Device = 0,
    threads: options.Threads = None,
    native_ops: options.NativeOps = True,
    verify: options.Verify = True,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Measure what every action costs in milliseconds. Budgets are then shares of this device's decode time."""
    from rich.table import Table

    from sol_rt.budget.cost.cost_table import MeasuredCost, keep
    from sol_rt.budget.cost.profile import measure
    from sol_rt.budget.cost.tune import tune
    from sol_rt.budget.dominated import describe, replacements
    from sol_rt.cli.loading import bundle_path, name_device, open_checked, usable_threads
    from sol_rt.errors import UsageError
    from sol_rt.generate.native.engine import Engine
    from sol_rt.store.home import check_writable, costs_dir

    if math.isnan(seconds):  # which is below no limit
        raise UsageError("--seconds nan: expected a number from 1, for example 60")
    try:
        lengths = [int(part) for part in contexts.split(",")]
    except ValueError:
        raise UsageError(
            f"--contexts {contexts}: expected whole numbers separated by commas, for example 64,512"
        ) from None
    bundle = open_checked(bundle_path(model), verify=verify)
    machine: dict[str, Any] = {"provider": provider, "native_ops": native_ops, "device": device}
    engine = Engine(bundle, threads=usable_threads(threads), **machine)
    name_device(engine.provider)
    check_writable(costs_dir() / "a table")
    tuned = None
    with progress(timed=True) as report:
        if engine.native and engine.provider.gpu is None:
            tuned = tune(engine, report, seconds=min(_TUNE_SECONDS, seconds / 4))
            seconds *= 3 / 4
        result = measure(engine, bundle, lengths, repeats, report, seconds=seconds)
    cost = MeasuredCost(bundle.config, result.table)
    path = keep(cost)
    dominated: dict[Action, Action] = {}
    if engine.provider.gpu is not None:
        dominated = replacements(bundle.config, cost)
    on_hull = _on_hull(cost, sorted({row.context for row in result.rows}))
    if json:
        rows = [row.as_json() for row in result.rows]
        instead = {action.tag: other.tag for action, other in dominated.items()}
        where = {"path": str(path), **engine.provider.as_json()}
        measured = None if tuned is None else asdict(tuned)
        print_json({**where, "rows": rows, "dominated": instead, "hull": on_hull, "tuning": measured})
        return
    columns = sorted({row.context for row in result.rows})
    table = Table("action", *(f"ms at {context}" for context in columns), "fit, %")
    found = {(row.action, row.context): row for row in result.rows}
    for action in sorted({row.action for row in result.rows}, reverse=True):
        timings = [found[action, context] for context in columns]
        fit = " ".join(f"{100 * timing.error:+.0f}" for timing in timings)
        table.add_row(action.tag, *(f"{timing.milliseconds:.2f}" for timing in timings), fit)
    print_table(table)
    errors = sorted(abs(row.error) for row in result.rows)
    worst = max(result.rows, key=lambda row: abs(row.error))
    middle, largest = 100 * errors[len(errors) // 2], 100 * abs(worst.error)
    at = f"{worst.action.tag} at {worst.context}"
    note(f"error of the fitted lines: median {middle:.1f}%, largest {largest:.1f}% ({at})")
    if left_out := sorted(set(lengths) - set(columns)):
        note(f"contexts not measured, for lack of context or time: {', '.join(map(str, left_out))}")
    if dominated:
        note(describe(dominated, engine.provider_name))
    for context, tags in on_hull.items():
        note(f"on the hull of time and loss at {context}: {', '.join(tags)}")
    if tuned is not None:
        faster = f", steps {tuned.gain:.2f} times as fast as by default" if tuned.gain > 1 else ", the default"
        note(f"processor: {tuned.tuning}{faster}; a dense step reads {tuned.rates}")
        if (gain := tuned.gain_of_copies or 1) > 1:
            note(f"copies: whole 4-bit steps are {gain:.2f} times as fast from copies of the matrices, and read these")
        if not tuned.steady:
            note("processor: the times scattered; run sol-rt profile again while no other program runs")
    shown = "; sol-rt inspect shows the costs" if engine.provider.gpu is None else ""
    note(f"saved: {path}{shown}")


@wraps(profile)
def calibrate(**given: Any) -> None:
    note("`sol-rt calibrate` is called `sol-rt profile` now")
    profile(**given)


def _on_hull(cost: CostModel, contexts: list[int]) -> dict[str, list[str]]:
    """The actions that a mix needs at each context, the cheapest first; empty if the export measured no losses."""
    from sol_rt.budget.hull import measured_hull

    hull = measured_hull(cost)
    if hull is None:
        return {}
    return {str(at): [hull.actions[corner.place].tag for corner in hull.corners(at)] for at in contexts}
