"""Reads `sol_config.json`. The native core checks it strictly: unknown, missing and impossible values are errors.

bundle.py checks the bundle's other files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sol_rt.bundle.actions import Action
from sol_rt.bundle.bits import LayerBits, Screen, parse_bits_name
from sol_rt.bundle.config import (
    CONFIG_NAME,
    ActionEntry,
    FileEntry,
    KvLayout,
    ModelDims,
    PolicySpec,
    SolConfig,
    TensorEntry,
    Variant,
)
from sol_rt.errors import BundleError
from sol_rt.native.library import core, path_bytes
from sol_rt.read_file import read_bytes

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


def read_config(path: Path | str, content: bytes | None = None, *, shapes: bool = False) -> SolConfig:
    """Reads and checks a file `sol_config.json`, or its `content`.

    With `shapes`, dims and bits have to fit the tensors: an edited dim must not misread the cache later.
    Raises BundleError, in one line, if it is not a valid config.
    """
    try:
        text = read_bytes(path) if content is None else content
    except OSError as error:
        raise BundleError(path, "", error.strerror or "an unreadable file", "a bundle's config") from None
    core().sol_config_check(text, len(text), path_bytes(path), shapes)
    return _config(json.loads(text))


def parse_config(raw: object, path: Path) -> SolConfig:
    """Checks the parsed JSON of a config. Errors name `path`. Raises BundleError."""
    return read_config(path, json.dumps(raw).encode())


def is_file_name(name: str) -> bool:
    """True if `name` is a plain file name: no folder, no leading dot, no character that a shell or browser changes."""
    return bool(_FILE_NAME.fullmatch(name)) and name != CONFIG_NAME and len(name) < 200


def _config(raw: Mapping[str, Any]) -> SolConfig:
    policy, weights = raw["policy"], raw["weights"]
    return SolConfig(
        generator=raw["generator"],
        model=ModelDims(**_frozen(raw["model"])),
        kv=KvLayout(**_frozen(raw["kv"])),
        dense=Action.parse(raw["dense"]),
        variants={key: _variant(key, entry) for key, entry in raw["variants"].items()},
        actions=tuple(_action(entry) for entry in raw["actions"]),
        policy=None if policy is None else _policy(policy),
        weights_file=weights["file"],
        tensors={name: TensorEntry(**_frozen(entry)) for name, entry in weights["tensors"].items()},
        files={name: FileEntry(**entry) for name, entry in raw["files"].items()},
    )


def _frozen(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The entry with its lists as tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in entry.items()}


def _variant(key: str, raw: Mapping[str, Any]) -> Variant:
    bits = parse_bits_name(raw["bits"])
    assert bits is not None
    made = {**_frozen(raw), "bits": bits, "channel_density": float(raw["channel_density"])}
    made["prompt_losses"] = _losses(raw.get("prompt_losses", {}))
    if "layer_bits" in raw:
        made["layer_bits"] = tuple(LayerBits(*row) for row in raw["layer_bits"])
    if (screen := raw.get("lm_head_screen")) is not None:
        made["lm_head_screen"] = Screen(**{**screen, "tail_offset": float(screen["tail_offset"])})
    return Variant(key=key, **made)


def _action(raw: Mapping[str, Any]) -> ActionEntry:
    loss = raw["loss"]
    return ActionEntry(Action.parse(raw["tag"]), None if loss is None else float(loss), _losses(raw.get("losses", {})))


def _losses(raw: Mapping[str, float]) -> dict[int, float]:
    return dict(sorted((int(context), float(loss)) for context, loss in raw.items()))


def _policy(raw: Mapping[str, Any]) -> PolicySpec:
    # older exports have keys more, which nobody reads
    made = {name: raw[name] for name in PolicySpec.__dataclass_fields__}
    return PolicySpec(**_frozen({**made, "actions": [Action.parse(tag) for tag in raw["actions"]]}))
