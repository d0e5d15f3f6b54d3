"""`sol-rt inspect`: what a bundle holds."""

from __future__ import annotations

from typing import Annotated

from sol_rt.cli import options
from sol_rt.cli.console import print_json, print_table


def inspect(
    model: options.Model = None,
    context: Annotated[
        int, options.option("-c", "--context", env=False, min=0, help="Context length that costs are given for.")
    ] = 512,
    output: options.Output = options.Format.text,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Show a bundle: variants, policy, and every action with its cost, loss and bytes."""
    from sol_rt.cli.loading import bundle_path
    from sol_rt.inspect import describe

    description = describe(bundle_path(model), context)
    if json or output is options.Format.json:
        print_json(description)
        return
    _print(description, context)


def _print(description: dict, context: int) -> None:
    from rich.table import Table

    model = description["model"]
    print(f"{description['path']}: {model['name']}, {model['architecture']}, licence {model['license']}")
    policy = description["policy"] or "none"
    kv = description["kv"]["dtype"]
    print(f"format {description['format_version']}, context {model['max_context']}, {kv} KV cache, policy: {policy}")

    variants = Table("variant", "channels kept", "bits", "weights read a step, MB")
    for variant in description["variants"]:
        variants.add_row(variant["key"], f"{variant['prune']}%", str(variant["bits"]), f"{variant['bytes'] / 1e6:.1f}")
    print_table(variants)

    actions = Table("action", f"cost at context {context} ({description['cost_model']})", "loss, nats", "MB a step")
    for action in description["actions"]:
        loss = "not measured" if action["loss"] is None else f"{action['loss']:.3f}"
        actions.add_row(action["tag"], f"{action['cost']:.3f}", loss, f"{action['bytes'] / 1e6:.1f}")
    print_table(actions)
