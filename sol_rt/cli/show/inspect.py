"""`sol-rt inspect` shows a bundle: its contents, cost and loss of its actions, and the dropped candidates."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from sol_rt.cli import options
from sol_rt.cli.console import note, print_json, print_table


def inspect(
    model: options.Model = None,
    context: Annotated[
        int, options.option("-c", "--context", env=False, min=0, help="Context in tokens at which to show costs.")
    ] = 512,
    every: Annotated[
        bool, options.option("--all", env=False, help="Also show the candidates that the export dropped, and why.")
    ] = False,
    html: Annotated[
        Path | None, options.option("--html", env=False, help="HTML page to draw the actions' cost and loss on.")
    ] = None,
    output: options.Output = options.Format.text,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Show a bundle: variants, policy, and every action with its cost, loss and bytes, as a table and a plot."""
    from sol_rt.bundle.bundle import Bundle
    from sol_rt.bundle.selection import Selection
    from sol_rt.cli.loading import bundle_path
    from sol_rt.errors import UsageError
    from sol_rt.evaluation.inspect import describe

    path = bundle_path(model)
    description = describe(path, context)
    selection = Selection.of(Bundle.open(path))
    if html is not None:
        from sol_rt.evaluation.pages.frontier import render_frontier_html

        if selection is None:
            raise UsageError(f"--html: {path} has no measured losses; export it with calibration")
        html.write_text(render_frontier_html(description["model"]["name"], selection), encoding="utf-8")
        note(f"{html}: written")
    if json or output is options.Format.json:
        print_json(description)
        return
    _print(description, context, every)
    if selection is None:
        print("This bundle has no measured losses, or those of an older version; export it again to get them.")
    else:
        _print_frontier(selection)


def _print(description: dict[str, Any], context: int, every: bool) -> None:
    from rich.table import Table

    model = description["model"]
    print(f"{description['path']}: {model['name']}, {model['architecture']}, licence {model['license']}")
    policy = description["policy"] or "none"
    kv = description["kv"]["dtype"]
    print(f"format {description['format_version']}, context {model['max_context']}, {kv} KV cache, policy: {policy}")

    variants = Table("variant", "channel density", "bits", "LM head bits", "weights read per step, MB")
    for variant in description["variants"]:
        share, size = f"{variant['channel_density']:g}", f"{variant['bytes'] / 1e6:.1f}"
        variants.add_row(variant["key"], share, _told_bits(variant), str(variant["lm_head_bits"]), size)
    print_table(variants)

    selection = description["selection"]
    contexts = [] if selection is None else list(selection["contexts"])
    measured = [f"loss at {context}" for context in contexts]
    cost = f"cost at context {context} ({description['cost_model']})"
    actions = Table("action", cost, "MB per step", *(measured or ["loss, nats"]))
    for action in description["actions"]:
        cells = _cells(action["measured"], contexts) or ["not measured"]
        actions.add_row(action["tag"], f"{action['cost']:.3f}", f"{action['bytes'] / 1e6:.1f}", *cells)
    print_table(actions)
    if selection is None:
        return
    dropped = [candidate for candidate in selection["candidates"] if not candidate["kept"]]
    if every:
        table = Table("candidate", *measured, "why it was kept or dropped")
        for candidate in selection["candidates"]:
            cells = _cells(candidate["measured"], contexts)
            table.add_row(candidate["tag"], *cells, ("" if candidate["kept"] else "dropped: ") + candidate["reason"])
        print_table(table)
    elif dropped:
        print(f"{len(dropped)} candidates were dropped; --all shows them and the reasons.")
    scored = ", ".join(f"{setting['tokens']} tokens at {at}" for at, setting in selection["contexts"].items())
    print(f"Losses are in nats over dense ± standard error: {scored}; text: {selection['text']}.")


def _told_bits(variant: dict[str, Any]) -> str:
    """A variant's bits; for mixed bits, also the bits that occur in it."""
    if variant["layer_bits"] is None:
        return str(variant["bits"])
    found = sorted({bits for layer in variant["layer_bits"] for bits in layer})
    return f"{variant['bits']} ({', '.join(map(str, found))})"


def _cells(measured: dict[str, Any], contexts: list[str]) -> list[str]:
    cells = []
    for context in contexts:
        point = measured.get(context)
        cells.append("" if point is None else f"{point['loss']:.4f} ± {point['stderr']:.4f}")
    return cells


def _print_frontier(selection: Any) -> None:
    from sol_rt.budget.frontier import frontier, text_plot

    for context in selection.contexts:
        points = frontier(selection, context)
        print(f"\nLoss against bytes of the kept actions at context {context}; dots: reached by mixing actions")
        print(text_plot(points))
        kept = [point for point in points if point.kept]
        print("  ".join(f"{number} {point.tag}" for number, point in enumerate(kept, 1)))
