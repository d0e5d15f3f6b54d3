"""Bundles of an older format with the same weights: config, selection, graphs and chat segments as this version has
them.

Nothing is quantized, measured or trained again: losses stay as they are, and so do the tokens. The record of the
candidates, selection.json, is left out: it chose by times, which this version does not read.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sol_rt.atomic_write import replacing_folder
from sol_rt.bundle import selection
from sol_rt.bundle.bundle import Bundle, sha256
from sol_rt.bundle.config import (
    CONFIG_NAME,
    FORMAT_VERSION,
    FORMAT_VERSION_OF_THREE_BITS,
    SAME_WEIGHTS_SINCE,
    FileEntry,
    SolConfig,
)
from sol_rt.bundle.config_reader import parse_config
from sol_rt.errors import BundleError
from sol_rt.export.graphs.graph import build_graph
from sol_rt.export.sources.chat_segments import FILE as CHAT_SEGMENTS
from sol_rt.export.sources.chat_segments import chat_segments_of
from sol_rt.export.sources.decoder import from_hf_config
from sol_rt.store.home import calibration_dir

_CARD = "README.md"
_OLD_MIXED = re.compile(r"\bq5\b")
_RENAMED = {
    "keep_in": "active_up",
    "keep_mid": "active_down",
    "keep_qkv": "active_qkv",
    "keep_o": "active_o",
    "head_bits": "lm_head_bits",
    "layer_widths": "layer_bits",
}
"""Keys of a variant that kept their value."""


@dataclass(frozen=True)
class Migrated:
    """What was done: the version before, the graph files written, and the device calibrations removed."""

    version: int
    graphs: tuple[str, ...]
    calibrations: tuple[Path, ...]


def migrate(folder: Path) -> Migrated:
    """Brings the bundle in `folder` to FORMAT_VERSION; a bundle that has it or a later one gets its graphs anew.

    The new bundle is written aside and takes the folder's place at the end; its weights are not copied. The bundle's
    device calibrations are removed, as they belong to the old config.

    Raises BundleError where files are missing or damaged, or of a format whose weights are not today's, CheckpointError
    for an architecture that no graph here has, WriteError where it can't write; the bundle stays as it was then.
    """
    folder = folder.resolve()
    path = folder / CONFIG_NAME
    document = _read(path)
    version = document.get("format_version")
    if not isinstance(version, int) or not SAME_WEIGHTS_SINCE <= version <= FORMAT_VERSION_OF_THREE_BITS:
        expected = f"{SAME_WEIGHTS_SINCE} to {FORMAT_VERSION_OF_THREE_BITS}"
        raise BundleError(path, "format_version", version, expected)
    old_files = {str(variant["file"]) for variant in _tables(document.get("variants")) if "file" in variant}
    identity = sha256(path)
    config = parse_config(_upgraded(document) if version < FORMAT_VERSION else document, path)
    decoder = from_hf_config(_read(folder / "config.json"), config.model.max_context)
    precisions = {variant.file: variant.precision for variant in config.variants.values()}
    contents = {
        file: build_graph(decoder, precision, config.tensors, config.weights_file, config.kv).SerializeToString()
        for file, precision in precisions.items()
    }
    graphs = tuple(contents)
    if version < FORMAT_VERSION:
        contents |= _upgraded_texts(folder, config)
    if (segments := chat_segments_of(folder)) is not None:
        contents[CHAT_SEGMENTS] = segments
    gone = old_files - set(graphs) | ({selection.SELECTION} if version < FORMAT_VERSION else set())
    files = {name: entry for name, entry in config.files.items() if name not in gone}
    files |= {name: FileEntry(len(data), hashlib.sha256(data).hexdigest()) for name, data in contents.items()}
    of_model = decoder.kv(config.kv.dtype)
    kv = replace(config.kv, windows=of_model.windows, layers=of_model.layers, conv_size=of_model.conv_size)
    text = json.dumps(
        replace(config, files=files, kv=kv).to_json_dict(),
        indent=2,
        ensure_ascii=False,
    )
    contents[CONFIG_NAME] = (text + "\n").encode()
    with replacing_folder(folder) as aside:
        shutil.copytree(folder, aside, symlinks=True, copy_function=_link, dirs_exist_ok=True)
        aside.chmod(aside.stat().st_mode | stat.S_IRWXU)  # of a read-only bundle it has the mode
        for file in old_files | gone:
            (aside / file).unlink(missing_ok=True)
        for file, data in contents.items():
            (aside / file).unlink(missing_ok=True)  # a link to the old one
            (aside / file).write_bytes(data)
        Bundle.open(aside)
    return Migrated(version, graphs, _remove_calibrations(identity))


def _upgraded(document: dict[str, Any]) -> dict[str, Any]:
    """A config of version 3 or 4 with the keys of version 5."""
    config = {key: value for key, value in document.items() if key != "refresh"}
    config["format_version"] = FORMAT_VERSION
    for table in (config, *_tables(config.get("actions")), *_tables([config.get("policy")])):
        for key in {"dense", "tag", "actions"} & set(table):
            table[key] = _with_tags(table[key])
    variants = config.get("variants")
    if isinstance(variants, dict):
        config["variants"] = {_with_tags(key): _upgraded_variant(entry) for key, entry in variants.items()}
    files = config.get("files")
    if isinstance(files, dict):
        config["files"] = {_with_tags(name): entry for name, entry in files.items()}
    return config


def _upgraded_variant(entry: Any) -> Any:
    if not isinstance(entry, dict):
        return entry
    entry = {_RENAMED.get(key, key): value for key, value in entry.items()}
    if isinstance(percent := entry.pop("prune", None), int):
        entry["channel_density"] = percent / 100
    if entry.get("bits") == 5:
        entry["bits"] = "mixed"
    if "file" in entry:
        entry["file"] = _with_tags(entry["file"])
    return entry


def _upgraded_texts(folder: Path, config: SolConfig) -> dict[str, bytes]:
    """The card, where the bundle has one."""
    if _CARD not in config.files:
        return {}
    return {_CARD: _with_tags((folder / _CARD).read_text(encoding="utf-8")).encode()}


def _with_tags(value: Any) -> Any:
    """The value with `q5` written `qmix` in every string in it, keys aside."""
    if isinstance(value, str):
        return _OLD_MIXED.sub("qmix", value)
    if isinstance(value, list):
        return [_with_tags(item) for item in value]
    if isinstance(value, dict):
        return {key: _with_tags(item) for key, item in value.items()}
    return value


def _tables(values: Any) -> Iterator[dict[str, Any]]:
    """The JSON objects among the values of a JSON array or object."""
    items = values.values() if isinstance(values, dict) else values if isinstance(values, list) else ()
    return (item for item in items if isinstance(item, dict))


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)


def _remove_calibrations(identity: str) -> tuple[Path, ...]:
    """Removes the calibration tables made for a config of this hash; returns them."""
    found = []
    for path in calibration_dir().glob("*.json"):
        try:
            if json.loads(path.read_text(encoding="utf-8"))["bundle"] == identity:
                path.unlink()
                found.append(path)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
    return tuple(sorted(found))


def _read(path: Path) -> dict[str, Any]:
    """A JSON object in a bundle."""
    if not path.is_file():
        raise BundleError(
            path, "", "no such file", "a file of a bundle", "point at a folder that `sol-rt export` wrote"
        )
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise BundleError(path, "", "no JSON object", "one")
    return document
