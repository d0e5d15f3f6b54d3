"""Opens the model that a command line names, and checks the options of the dial."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from sol_rt.cli.console import note
from sol_rt.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sol_rt.bundle.config import SolConfig
    from sol_rt.engine.providers import Provider
    from sol_rt.generate.model import SolModel


def bundle_path(model: str | None) -> Path:
    """The bundle folder that `-m` names. A note on stderr names the bundle if the user named none."""
    from sol_rt.store.home import find_bundle

    path = find_bundle(model)
    if model is None and not os.environ.get("SOL_RT_MODEL"):
        note(f"model: {path} (exported last)")
    return path


def load(
    model: str | None,
    *,
    provider: str = "auto",
    threads: int | None = None,
    native_ops: bool = True,
    device: int = 0,
    ctx_size: int | None = None,
) -> SolModel:
    """Opens the bundle that `-m` names. The other arguments are those of `SolModel.from_pretrained`."""
    from sol_rt.budget.dominated import describe
    from sol_rt.generate.model import SolModel

    loaded = SolModel.from_pretrained(
        bundle_path(model),
        provider=provider,
        threads=threads,
        native_ops=native_ops,
        device=device,
        max_context=ctx_size,
    )
    name_device(loaded.engine.provider)
    if native_ops and loaded.engine.provider.name == "cpu" and not loaded.engine.provider.native:
        note("native operators: not installed; standard ones run, several times slower; next step: sol-rt doctor")
    if loaded.cost.note:
        note(loaded.cost.note)
    if loaded.dominated:
        note(describe(loaded.dominated, provider=loaded.engine.provider_name))
    return loaded


def note_ineffective(loaded: SolModel, how: Mapping[str, Any]) -> None:
    """Notes on stderr which of the settings that `dial` returned save nothing on the GPU."""
    if line := loaded.ineffective(how["schedule"], how["kv_density"], how["channel_density"], how["bits"]):
        note(line)


def name_device(provider: Provider) -> None:
    """Notes on stderr which GPU computes. Prints nothing on the CPU."""
    if provider.name != "cpu":
        note(f"device: {provider.device_name} ({provider.name})")


def dial(
    schedule: str | None,
    budget: float | None,
    tokens_per_second: float | None,
    kv_density: float | None,
    channel_density: float | None,
    bits: float | None,
) -> dict[str, Any]:
    """Turns the options of the dial into arguments of `SolModel`. Raises UsageError for options that contradict."""
    from sol_rt.budget.schedules import is_constant

    if budget is not None and tokens_per_second is not None:
        raise UsageError("--budget and --tokens-per-second set the same dial; give one")
    targets = {"kv_density": kv_density, "channel_density": channel_density, "bits": bits}
    if schedule is not None and is_constant(schedule):
        given = {"budget": budget, "tokens_per_second": tokens_per_second, **targets}
        if names := [name.replace("_", "-") for name, value in given.items() if value is not None]:
            raise UsageError(f"--schedule {schedule} fixes the action; leave out --{' --'.join(names)}")
    return {
        "schedule": schedule,
        "budget": 1.0 if budget is None else budget,
        "tokens_per_second": tokens_per_second,
        **targets,
    }


def check_schedule(name: str, config: SolConfig) -> None:
    """Raises UsageError if the bundle cannot run the schedule `name`."""
    from sol_rt.budget.schedules import NAMES
    from sol_rt.bundle.actions import Action

    if name.startswith("fixed:"):
        action = Action.parse(name.removeprefix("fixed:"))
        if action.variant not in config.variants:
            raise UsageError(
                f"schedule {name}: no variant {action.variant}; the bundle has {', '.join(config.variants)}"
            )
    elif name not in NAMES:
        raise UsageError(f"schedule {name!r}: expected one of {', '.join(NAMES)}")
    elif name == "sol" and config.policy is None:
        raise UsageError("schedule sol: the bundle has no policy; use uniform, or train a policy")


def read_text(path: Path) -> str:
    """Reads a file's text, without a byte order mark. Raises UsageError if it cannot be read or is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: byte {error.start} is not UTF-8; convert the file, for example with iconv") from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
