"""`sol-rt export`: a checkpoint becomes a bundle."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from sol_rt.cli import options
from sol_rt.cli.console import note, progress
from sol_rt.errors import SolError, UsageError

_NO_POLICY = "none"
_NEEDED = ("torch", "transformers", "onnx", "gguf", "safetensors")


def export(
    model: Annotated[
        str,
        options.option(
            "-m",
            "--model",
            env=False,
            help="Checkpoint folder, .gguf file, alias or hub id; with --policy also a bundle.",
        ),
    ],
    output: Annotated[
        Path | None, options.option("-o", "--output", env=False, help="Bundle folder; default: under $SOL_RT_HOME.")
    ] = None,
    bits: Annotated[
        str, options.option("--bits", env=False, help="Weight widths, of 8, 6, 4, and 5: by matrix.")
    ] = "8,6,5,4",
    prune: Annotated[
        str, options.option("--prune", env=False, help="Shares of the layers' base weights read, percent.")
    ] = "100,75,50,40,25",
    keep: Annotated[
        str, options.option("--keep", env=False, help="Shares of old KV pages read, percent.")
    ] = "100,50,25,10",
    ctx_size: Annotated[
        int | None,
        options.option("-c", "--ctx-size", env=False, min=32, help="Largest context; default: the model's own."),
    ] = None,
    force: Annotated[
        bool, options.option("--force", env=False, help="Replace a bundle that is already there.")
    ] = False,
    policy: Annotated[
        str | None,
        options.option(
            "--policy",
            env=False,
            help="Put this trained policy into the bundle; one that is there is not made again. none: no policy; "
            "default: that of the alias, where it has one.",
        ),
    ] = None,
    kv: Annotated[
        str, options.option("--kv", env=False, help="Type of the KV cache's keys and values: float16 or int8.")
    ] = "float16",
    calibration: Annotated[
        str,
        options.option(
            "--calibration",
            env=False,
            help="Text file to calibrate on; self: the model writes the text; none: plain rounding, all actions.",
        ),
    ] = "self",
    max_actions: Annotated[
        int | None,
        options.option(
            "--max-actions", env=False, min=1, help="Actions to choose by measurement at most; default: 12."
        ),
    ] = None,
    parity: Annotated[
        bool, options.option("--parity/--no-parity", env=False, help="Compare with the source at the end.")
    ] = True,
    debug: options.Debug = False,
) -> None:
    """Export a checkpoint to a bundle: calibrate its weights, choose its actions by measurement, compare it with the
    source. With --policy and a bundle that is there already, give it the policy and leave the rest. Prints the
    bundle's path.
    """
    from sol_rt.bundle.config import CONFIG_NAME, KV_DTYPES
    from sol_rt.store.home import bundles_dir, remember_last_export
    from sol_rt.store.pull import bundle_name

    levels = {
        "bits": _levels("bits", bits, 8),
        "prune": _levels("prune", prune, 100),
        "keep": _levels("keep", keep, 100),
    }
    if kv not in KV_DTYPES:
        raise UsageError(f"--kv {kv}: expected {' or '.join(KV_DTYPES)}")
    given = None if policy in (None, _NO_POLICY) else Path(str(policy))
    bundle = None if given is None else _existing(model, output, force)
    _need(("onnx", "safetensors") if bundle else _NEEDED)
    if given is not None and bundle is not None:
        from sol_rt.budget.calibration_table import has_table
        from sol_rt.bundle.bundle import Bundle
        from sol_rt.export.policy_file import give_policy

        calibrated = has_table(Bundle.open(bundle))
        print(give_policy(bundle, given).path)
        if calibrated:
            note("the bundle's calibration was made without this policy: costs are bytes; run sol-rt calibrate again")
        return
    if policy is None:
        given = _policy_of_alias(model, levels)
    from sol_rt.export import export_bundle

    target = output or bundles_dir() / bundle_name(model)
    if (target / CONFIG_NAME).exists() and not force:
        raise UsageError(f"{target} is already there; pass --force to replace it or -o for another place")
    with progress() as report:
        result = export_bundle(
            model,
            target,
            **levels,
            max_context=ctx_size,
            policy=given,
            kv=kv,
            calibration=calibration,
            max_actions=max_actions,
            parity=parity,
            progress=report,
        )
    for line in result.lines():
        note(line)
    remember_last_export(target)
    print(target)


def _existing(model: str, output: Path | None, force: bool) -> Path | None:
    """The bundle that a policy is for, where there is one already and it is not to be exported anew."""
    from sol_rt.bundle.config import CONFIG_NAME
    from sol_rt.store.home import bundles_dir
    from sol_rt.store.pull import bundle_name

    given = Path(model).expanduser()
    if (given / CONFIG_NAME).is_file():
        if output is not None:
            raise UsageError(f"-o {output}: {model} is a bundle and gets the policy itself; leave out -o")
        return given
    if output is not None:
        target = output
    else:
        named = given.name == model and (bundles_dir() / model / CONFIG_NAME).is_file()
        target = bundles_dir() / (model if named else bundle_name(model))
    return target if (target / CONFIG_NAME).is_file() and not force else None


def _policy_of_alias(model: str, levels: Mapping[str, Sequence[int]]) -> Path | None:
    """The policy that the alias comes with, where the levels asked for have all its actions."""
    from sol_rt.export.policy_file import read_policy
    from sol_rt.store.recipes import aliases

    recipe = aliases().get(model)
    path = None if recipe is None else recipe.policy_path()
    if path is None:
        return None
    for action in read_policy(path).actions:
        for axis, level in (("keep", action.keep), ("prune", action.prune), ("bits", action.bits)):
            if level not in levels[axis]:
                note(f"no policy: that of {model} picks {action.tag}, which --{axis} leaves out")
                return None
    return path


def _need(packages: tuple[str, ...]) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise SolError(f"export needs {', '.join(missing)}; run pip install 'sol-rt[export]'")


def _levels(name: str, text: str, top: int) -> tuple[int, ...]:
    try:
        levels = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--{name} {text}: expected whole numbers with commas between, for example 100,50") from None
    if not all(1 <= level <= top for level in levels) or len(set(levels)) != len(levels):
        raise UsageError(f"--{name} {text}: expected different numbers from 1 to {top}")
    return tuple(sorted(levels, reverse=True))
