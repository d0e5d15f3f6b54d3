"""`sol-rt inspect` shows a bundle: its contents, cost and loss of its actions, and the dropped candidates."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from sol_rt.cli import options
from sol_rt.cli.console import note, print_json, print_table
from sol_rt.errors import cut, plain

if TYPE_CHECKING:
    from rich.table import Table

    from sol_rt.bundle.bundle import Bundle
    from sol_rt.bundle.selection import Selection
    from sol_rt.evaluation.frontier import RelativeCost

_LOSS_COLUMNS = 15
_REASON_COLUMNS = 24


def inspect(
    model: options.Model = None,
    context: Annotated[
        int, options.option("-c", "--context", env=False, min=0, help="Context in tokens at which to show costs.")
    ] = 512,
    every: Annotated[
        bool,
        options.option("--all", env=False, help="Show all candidates, and why each was kept or dropped."),
    ] = False,
    html: Annotated[
        Path | None, options.option("--html", env=False, help="HTML page to draw the actions' cost and loss on.")
    ] = None,
    output: options.Output = options.Format.text,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Show a bundle: variants, policy, and every action with its cost, loss and bytes, as a table and a plot."""
    from sol_rt.atomic_write import write_text
    from sol_rt.bundle.bundle import Bundle
    from sol_rt.bundle.selection import Selection
    from sol_rt.cli.loading import bundle_path, require_packages
    from sol_rt.errors import UsageError
    from sol_rt.evaluation.inspect import describe, relative_cost

    if html is not None:
        require_packages("plot", what="--html")
    path = bundle_path(model)
    description = describe(path, context)
    bundle = Bundle.open(path)
    selection = Selection.of(bundle)
    if html is not None:
        from sol_rt.evaluation.pages.frontier import render_frontier_html

        if selection is None:
            raise UsageError(f"--html: {path}: {_lacking(bundle)}")
        write_text(html, render_frontier_html(description["model"]["name"], selection, *relative_cost(bundle)))
        note(f"{html}: written")
    if json or output is options.Format.json:
        print_json(description)
        return
    _print(_shown(description), every)
    if selection is None:
        print(f"No plot and no candidates: {_lacking(bundle)}.")
    else:
        _print_frontier(selection, *relative_cost(bundle))


def _lacking(bundle: Bundle) -> str:
    """Explains why there is no selection to show, with the next step."""
    from sol_rt.bundle.selection import SELECTION

    if bundle.config.losses_measured:
        return f"it has no {SELECTION}; export the model again"
    return "its losses were not measured; export the model again with calibration"


def _shown(value: Any) -> Any:
    """The description for a terminal: its texts come from the bundle, which may be anybody's."""
    if isinstance(value, dict):
        return {key: _shown(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_shown(item) for item in value]
    return cut(plain(value)) if isinstance(value, str) else value


def _print(description: dict[str, Any], every: bool) -> None:
    from rich.table import Table

    from sol_rt.budget.cost.model import in_unit

    model = description["model"]
    unit = in_unit(description["cost_model"])
    licence = f"licence {model['license']}" if model["license"] else "no licence stated"
    print(f"{description['path']}: {model['name']}, {model['architecture']}, {licence}")
    policy = description["policy"] or "none"
    print(
        f"format {description['format_version']}, context {model['max_context']}, {_cache(description)}, "
        f"policy: {policy}"
    )

    variants = Table("variant", "channel density", "bits", "LM head bits", "weights read per step, MB")
    for variant in description["variants"]:
        share, size = f"{variant['channel_density']:g}", f"{variant['bytes'] / 1e6:.1f}"
        variants.add_row(variant["key"], share, _told_bits(variant), _told_head(variant), size)
    print_table(variants)
    _print_screens(description["variants"])

    print_table(_memory(description["memory"]))
    for kind in description["windows"]:
        print(
            f"{kind['layers']} layers with a window of {kind['window']} tokens keep at most {kind['tokens']} tokens: "
            f"{_megabytes(kind['cache'])} MB of the KV cache."
        )

    selection = description["selection"]
    contexts = [] if selection is None else list(selection["contexts"])
    actions = Table()
    actions.add_column("action", no_wrap=True)
    actions.add_column(f"cost at {description['context']},\n{unit}", justify="right")
    actions.add_column("MB per\nstep", justify="right")
    for title in [f"loss at {at}" for at in contexts] or ["loss, nats"]:
        actions.add_column(title, justify="right", min_width=_LOSS_COLUMNS if len(contexts) <= 2 else None)
    for action in description["actions"]:
        losses = [_loss(action["measured"].get(at)) for at in contexts] or [_only_loss(action["loss"])]
        actions.add_row(action["tag"], f"{action['cost']:.3f}", _megabytes(action["bytes"]), *losses)
    print_table(actions)
    for at, budgets in description["budgets"].items():
        print(
            f"Sensible budgets at {at} tokens, as shares of dense, {unit}: {budgets['sensible']:.2f} to 1. "
            f"Without a budget: {budgets['default']:.2f}. The cheapest action: {budgets['cheapest']:.2f}."
        )
    if selection is None:
        return
    dropped = sum(not candidate["kept"] for candidate in selection["candidates"])
    if every:
        print_table(_candidates(selection))
    elif dropped:
        print(f"{dropped} candidates were dropped; --all shows them and the reasons.")
    scored = ", ".join(f"{setting['tokens']} tokens at {at}" for at, setting in selection["contexts"].items())
    print(f"Losses are in nats over dense ± standard error: {scored}; text: {selection['text']}.")
    if every:
        print("A candidate's cost is a share of dense, in bytes.")


def _memory(footprints: dict[str, dict[str, int]]) -> Table:
    """Main memory that running takes, by context. Weights are mapped, so processes share them."""
    from rich.table import Table

    table = Table("memory, MB,\nat context", "weights\n(mapped)", "program", "KV cache", "activations", "total")
    for context, parts in footprints.items():
        table.add_row(context, *(_megabytes(part) for part in parts.values()))
    return table


def _candidates(selection: dict[str, Any]) -> Table:
    """A row for every candidate: a line for each context at which it was measured, and the reason beside them.

    The table fits into 80 columns. There the reason takes several lines.
    """
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("candidate", no_wrap=True)
    for title in ("context", "cost", "MB", "loss, nats"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("why it was kept or dropped", min_width=_REASON_COLUMNS)
    for candidate in selection["candidates"]:
        points = candidate["measured"]
        columns = (
            list(points),
            [f"{point['cost']:.3f}" for point in points.values()],
            [_megabytes(point["bytes"]) for point in points.values()],
            [_loss(point) for point in points.values()],
        )
        outcome = f"{'kept' if candidate['kept'] else 'dropped'}: {candidate['reason']}"
        table.add_row(candidate["tag"], *("\n".join(column) for column in columns), escape(outcome))
    return table


def _cache(description: dict[str, Any]) -> str:
    """Describes the cache of the layers: KV cache, states, or both."""
    kinds, dtype = description["kv"]["layers"], description["kv"]["dtype"]
    if not kinds:
        return f"{dtype} KV cache"
    return f"{dtype} KV cache in {kinds.count('attention')} of {len(kinds)} layers and a state in the others"


def _told_bits(variant: dict[str, Any]) -> str:
    """A variant's bits; for mixed bits, also the bits that occur in it."""
    if variant["layer_bits"] is None:
        return str(variant["bits"])
    found = sorted({bits for layer in variant["layer_bits"] for bits in layer})
    return f"{variant['bits']} ({', '.join(map(str, found))})"


def _told_head(variant: dict[str, Any]) -> str:
    """Bits of the LM head; of a screened one those of every row and those of the candidates."""
    screen, bits = variant["lm_head_screen"], variant["lm_head_bits"]
    return str(bits) if screen is None else f"{screen['bits']} (top {screen['candidates']}: {bits})"


def _print_screens(variants: list[dict[str, Any]]) -> None:
    """A line for each graph whose LM head is screened: what a step saves."""
    graphs = {variant["file"]: variant for variant in variants if variant["lm_head_screen"] is not None}
    for file, variant in graphs.items():
        screen, bits = variant["lm_head_screen"], variant["lm_head_bits"]
        rows, saved = screen["candidates"], _megabytes(screen["saved_bytes"])
        print(
            f"{file}: a step reads {screen['bits']} bits of the LM head, and {bits} bits of the {rows} rows with the "
            f"highest scores: {saved} MB less than {bits} bits of all rows."
        )


def _megabytes(count: float) -> str:
    return f"{count / 1e6:.1f}"


def _loss(point: dict[str, Any] | None) -> str:
    return "" if point is None else f"{point['loss']:.4f} ± {point['stderr']:.4f}"


def _only_loss(loss: float | None) -> str:
    """The loss that sol_config.json has of an action, where selection.json can't be shown."""
    return "not measured" if loss is None else f"{loss:.4f}"


def _print_frontier(selection: Selection, cost_model: str, relative_cost: RelativeCost | None) -> None:
    from sol_rt.budget.cost.model import in_unit
    from sol_rt.evaluation.frontier import frontier, text_plot

    unit = in_unit(cost_model)
    for context in selection.contexts:
        points = frontier(selection, context, relative_cost)
        print(
            f"\nLoss against cost, as a share of dense, {unit}, of the kept actions at context {context}; "
            "dots: reached by mixing actions"
        )
        print(text_plot(points, unit))
        kept = [point for point in points if point.kept]
        print("  ".join(f"{number} {point.tag}" for number, point in enumerate(kept, 1)))
