"""`sol-rt export` turns a checkpoint into a bundle."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from sol_rt.cli import options
from sol_rt.cli.console import note, progress
from sol_rt.cli.loading import require_packages
from sol_rt.errors import UsageError, WriteError

if TYPE_CHECKING:
    from sol_rt.bundle.bundle import Bundle

_NO_POLICY = "none"
_NATIVE, _WEB, _GPU = "native", "web", "gpu"
_CHANNEL_DENSITY, _KV_DENSITY = "1,0.75,0.62,0.5,0.4", "1,0.5,0.25,0.1"


def export(
    model: Annotated[
        str,
        options.option(
            "-m",
            "--model",
            env=False,
            help="Checkpoint folder, .gguf file, alias or hub id; with --policy, also a bundle.",
        ),
    ],
    output: Annotated[
        Path | None,
        options.option("-o", "--output", env=False, help="Bundle folder to write; default: a folder in $SOL_RT_HOME."),
    ] = None,
    bits: Annotated[
        str,
        options.option(
            "--bits", env=False, help="Weight bits to offer, from 8, 6, mixed (differs by matrix), 4 and 3."
        ),
    ] = "8,6,mixed,4,3",
    channel_density: Annotated[
        str | None,
        options.option(
            "--channel-density",
            env=False,
            help="Shares (0 to 1) of the layers' weights to read; must include 1. Default: 1,0.75,0.62,0.5,0.4; "
            "for the web 1.",
        ),
    ] = None,
    kv_density: Annotated[
        str | None,
        options.option(
            "--kv-density",
            env=False,
            help="Shares (0 to 1) of the old cached tokens to read; must include 1. Default: 1,0.5,0.25,0.1; for the "
            "web 1.",
        ),
    ] = None,
    ctx_size: Annotated[
        int | None,
        options.option(
            "-c", "--ctx-size", env=False, min=32, help="Largest context in tokens; default: the model's own."
        ),
    ] = None,
    force: Annotated[bool, options.option("--force", env=False, help="Replace a bundle that already exists.")] = False,
    policy: Annotated[
        str | None,
        options.option(
            "--policy",
            env=False,
            help="Trained policy to put into the bundle, or none; default: one fitted to its losses, if it helps. "
            "An existing bundle gets the policy and is not exported again.",
        ),
    ] = None,
    kv: Annotated[
        str, options.option("--kv", env=False, help="Type of cached keys and values: float16 or int8.")
    ] = "float16",
    calibration: Annotated[
        str | None,
        options.option(
            "--calibration",
            env=False,
            help="quick (a short text, which a model of less than a billion weights writes), full (it writes a long "
            "one), none (plain rounding, all actions), a text file, or a stored calibration; default: the alias's "
            "stored one, else quick.",
        ),
    ] = None,
    save_calibration: Annotated[
        Path | None,
        options.option("--save-calibration", env=False, help="File to store the measurements in, for other exports."),
    ] = None,
    max_actions: Annotated[
        int | None,
        options.option(
            "--max-actions", env=False, min=1, help="Largest number of actions to keep by measurement; default: 16."
        ),
    ] = None,
    target: Annotated[
        str,
        options.option(
            "--target",
            env=False,
            help="native; web: a copy of a bundle with few graphs, for browsers; gpu: graphs for WebGPU are added to a "
            "bundle. -m is then that bundle, or what is to be exported first.",
        ),
    ] = _NATIVE,
    parity: Annotated[
        bool, options.option("--parity/--no-parity", env=False, help="Compare the bundle with the source at the end.")
    ] = True,
    trust_remote_code: Annotated[
        bool,
        options.option(
            "--trust-remote-code", env=False, help="Run code of the checkpoint, if its tokenizer needs that."
        ),
    ] = False,
    debug: options.Debug = False,
) -> None:
    """Export a checkpoint to a bundle and print its path. With --policy, put a policy into an existing bundle.

    The export calibrates the weights, chooses the actions by measurement, and compares the bundle with the source.
    """
    from sol_rt.bundle.config import KV_DTYPES
    from sol_rt.store.home import bundles_dir, check_writable, remember_last_export, remember_source
    from sol_rt.store.pull import bundle_name, source_of

    bit_levels = _bits(bits)
    if target not in (_NATIVE, _WEB, _GPU):
        raise UsageError(f"--target {target}: expected {_NATIVE}, {_WEB} or {_GPU}")
    kv_levels = _densities("--kv-density", _KV_DENSITY if kv_density is None else kv_density)
    channel_levels = _densities("--channel-density", _CHANNEL_DENSITY if channel_density is None else channel_density)
    web_levels = (
        (1.0,) if channel_density is None else channel_levels,
        (1.0,) if kv_density is None else kv_levels,
    )
    if kv not in KV_DTYPES:
        raise UsageError(f"--kv {kv}: expected {' or '.join(KV_DTYPES)}")
    if target != _NATIVE and (found := _bundle_of(model)) is not None:
        others = {
            "output": output if target == _GPU else None,
            "ctx-size": ctx_size,
            "policy": policy,
            "kv": None if kv == "float16" else kv,
            "calibration": calibration,
            "save-calibration": save_calibration,
            "max-actions": max_actions,
        }
        if idle := [name for name, value in others.items() if value is not None]:
            raise UsageError(
                f"--{' and --'.join(idle)}: {found} is there already, and --target {target} changes none of that; "
                f"leave that out, or export the model again first"
            )
        if target == _GPU:
            _add_gpu_graphs(found)
        else:
            print(_write_for_web(found, output, force, bit_levels, *web_levels))
        return
    given = None if policy in (None, _NO_POLICY) else Path(str(policy))
    bundle = None if given is None else _existing(model, output, force)
    require_packages("export", ("onnx", "safetensors") if bundle else ())
    if given is not None and bundle is not None:
        from sol_rt.export.policy_file import give_policy

        _change(bundle, "this policy", partial(give_policy, bundle, given))
        return
    from sol_rt.export import export_bundle

    by_default = bundles_dir() / bundle_name(model)  # before a folder is made: it refuses what is no model
    place = by_default if output is None or target == _WEB else output
    _require_free(place, force)
    if target == _WEB:
        _require_free(_web_folder(place, output), force)
    check_writable(place, *([] if output is None else ["choose another -o"]))
    with progress() as report:
        result = export_bundle(
            model,
            place,
            bits=bit_levels,
            channel_density=channel_levels,
            kv_density=kv_levels,
            max_context=ctx_size,
            policy=_NO_POLICY if policy == _NO_POLICY else given,
            kv=kv,
            calibration=calibration,
            save_calibration=save_calibration,
            max_actions=max_actions,
            parity=parity,
            trust_remote_code=trust_remote_code,
            say=note,
            progress=report,
        )
    for line in result.lines():
        note(line)
    try:
        remember_last_export(place)
        remember_source(place, source_of(model))
    except WriteError as error:
        note(f"{error.path}: cannot be written ({error.reason}), so this is not the default model; use -m {place}")
    if target == _GPU:
        _add_gpu_graphs(place)
    else:
        print(place if target == _NATIVE else _write_for_web(place, output, force, bit_levels, *web_levels))


def _change(path: Path, what: str, change: Callable[[], Bundle]) -> None:
    """Changes a bundle in place and prints its path. `what` it was measured without, if it was measured."""
    from sol_rt.budget.cost.cost_table import tables_of
    from sol_rt.store.home import keeping_source

    measured = bool(tables_of(path))
    with keeping_source(path):
        print(change().path)
    if measured:
        note(f"the bundle was measured without {what}; run sol-rt profile again")


def _add_gpu_graphs(path: Path) -> None:
    """Gives a bundle the graphs that GPUs run, and prints its path."""
    require_packages("export", ("onnx",))
    from sol_rt.export.gpu import add_gpu_graphs

    with progress() as report:
        _change(path, "these graphs", partial(add_gpu_graphs, path, report))


def _bundle_of(model: str) -> Path | None:
    """The bundle that is there already under this name; None if the model has to be exported first."""
    from sol_rt.bundle.config import CONFIG_NAME
    from sol_rt.store.home import bundles_dir, user_path
    from sol_rt.store.pull import bundle_made_of

    folder = user_path(model)
    if (folder / CONFIG_NAME).is_file():
        return folder
    if folder.name == model and (bundles_dir() / model / CONFIG_NAME).is_file():
        return bundles_dir() / model
    return bundle_made_of(model, note)


def _web_folder(bundle: Path, output: Path | None) -> Path:
    """Folder for the copy of a bundle for browsers: `-o`, or beside the bundle."""
    return output or bundle.resolve().with_name(f"{bundle.resolve().name}-web")


def _require_free(place: Path, force: bool) -> None:
    """Raises UsageError if a bundle is there already that `--force` does not let go."""
    from sol_rt.bundle.config import CONFIG_NAME

    if (place / CONFIG_NAME).exists() and not force:
        raise UsageError(f"{place} already exists; pass --force to replace it, or -o for another folder")


def _write_for_web(
    bundle: Path,
    output: Path | None,
    force: bool,
    bits: tuple[int, ...],
    channel_density: tuple[float, ...],
    kv_density: tuple[float, ...],
) -> Path:
    """Writes a copy of a bundle for browsers, by default beside it, and returns its folder."""
    from sol_rt.store.home import check_writable

    require_packages("export", ("onnx",))
    from sol_rt.export.web import write_web_bundle

    place = _web_folder(bundle, output)
    _require_free(place, force)
    check_writable(place, "choose another -o")
    with progress() as report:
        config = write_web_bundle(
            bundle, place, bits=bits, channel_density=channel_density, kv_density=kv_density, progress=report
        )
    sizes = {name: entry.bytes for name, entry in config.files.items()}
    graphs = len({variant.file for variant in config.variants.values()})
    dropped = "" if config.policy is not None else ", no policy"
    note(f"for browsers: {graphs} graphs, {len(config.actions)} actions{dropped}, {sum(sizes.values()) / 1e6:.1f} MB")
    return place


def _existing(model: str, output: Path | None, force: bool) -> Path | None:
    """The existing bundle that gets the policy; None if the checkpoint must be exported first."""
    from sol_rt.bundle.config import CONFIG_NAME
    from sol_rt.store.home import user_path

    given = user_path(model)
    if (given / CONFIG_NAME).is_file():
        if output is not None:
            raise UsageError(f"-o {output}: {model} is a bundle; the policy is written into it, so leave out -o")
        return given
    if force:
        return None
    if output is not None:
        return output if (output / CONFIG_NAME).is_file() else None
    return _bundle_of(model)


def _bits(text: str) -> tuple[int, ...]:
    from sol_rt.bundle.bits import MIXED, parse_bits_name

    found = [parse_bits_name(part.strip()) for part in text.split(",")]
    levels = [bits for bits in found if bits is not None]
    if str(MIXED) in text.split(","):
        raise UsageError(f"--bits {text}: mixed bits are written mixed, as in --bits 8,6,mixed,4,3")
    if len(levels) != len(found) or len(set(levels)) != len(levels):
        raise UsageError(f"--bits {text}: expected some of 8, 6, mixed, 4 and 3, each once, separated by commas")
    return tuple(sorted(levels, reverse=True))


def _densities(flag: str, text: str) -> tuple[float, ...]:
    from sol_rt.bundle.actions import density

    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{flag} {text}: expected shares separated by commas, for example 1,0.5") from None
    for value in values:
        if not 0 < value <= 1:
            raise UsageError(f"{flag} {value:g}: expected a share from 0 to 1, for example 0.3")
    levels = {density(flag, value) for value in values}
    if len(levels) != len(values):
        raise UsageError(f"{flag} {text}: expected each share once")
    return tuple(sorted(levels, reverse=True))
