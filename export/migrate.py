"""Bundles of an older format with the same weights: config, selection, graphs and chat segments as this version has
them.

Nothing is quantized, measured or trained again: losses stay as they are, and so do the tokens. Codes of 3 bits are
written anew code by code, because version 6 had their bits in other places. selection.json of before version 5 is left
out: it chose by times, which this version does not read.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sol_rt.atomic_write import replacing_folder
from sol_rt.bundle import selection
from sol_rt.bundle.bundle import Bundle, check_hash, check_size, sha256
from sol_rt.bundle.config import (
    CONFIG_NAME,
    FORMAT_VERSION,
    FORMAT_VERSION_OF_THREE_BITS,
    SAME_WEIGHTS_SINCE,
    FileEntry,
    SolConfig,
    TensorEntry,
)
from sol_rt.bundle.config_reader import parse_config
from sol_rt.errors import BundleError
from sol_rt.export.graphs.graph import build_graph
from sol_rt.export.quantize.codebook import pack_codes
from sol_rt.export.quantize.nested import ByteArray
from sol_rt.export.sources.chat_segments import FILE as CHAT_SEGMENTS
from sol_rt.export.sources.chat_segments import chat_segments_of
from sol_rt.export.sources.decoder import from_hf_config
from sol_rt.store.home import calibration_dir

_CARD = "README.md"
_CODES_AT_ONCE = 4 << 20  # bounds the memory
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
    """Result of a migration: the version before, the graph files written, and the device calibrations removed."""

    version: int
    graphs: tuple[str, ...]
    calibrations: tuple[Path, ...]


def migrate(folder: Path) -> Migrated:
    """Brings the bundle in `folder` to the current format; a bundle that has it gets its graphs anew.

    The new bundle is written aside and takes the folder's place at the end. Its weights are copied only where codes of
    3 bits lie otherwise in them; the copy then needs room beside the folder. The bundle's device calibrations are
    removed, as they belong to the old config.

    Raises BundleError for missing or damaged files, and for a format whose weights are not today's. Raises
    CheckpointError for an architecture that no graph here has, and WriteError. The bundle then stays as it was.
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
    document = _upgraded(document) if version < FORMAT_VERSION else document
    config = parse_config(document | {"format_version": FORMAT_VERSION_OF_THREE_BITS}, path)
    coded = config.coded_matrices if version < FORMAT_VERSION_OF_THREE_BITS else ()
    planes = [_planes(path, config, matrix) for matrix in coded]
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
    with replacing_folder(folder) as aside:
        shutil.copytree(folder, aside, symlinks=True, copy_function=_link, dirs_exist_ok=True)
        aside.chmod(aside.stat().st_mode | stat.S_IRWXU)  # of a read-only bundle it has the mode
        for file in old_files | gone:
            (aside / file).unlink(missing_ok=True)
        for file, data in contents.items():
            (aside / file).unlink(missing_ok=True)  # a link to the old one
            (aside / file).write_bytes(data)
        if planes:
            weights = aside / config.weights_file
            _copy_weights(folder / config.weights_file, files[config.weights_file], weights, planes)
            files[config.weights_file] = FileEntry(weights.stat().st_size, sha256(weights))
        (aside / CONFIG_NAME).unlink()
        text = json.dumps(replace(config, files=files, kv=kv).to_json_dict(), indent=2, ensure_ascii=False)
        (aside / CONFIG_NAME).write_bytes((text + "\n").encode())
        Bundle.open(aside)
    return Migrated(version, graphs, _remove_calibrations(identity))


def _planes(path: Path, config: SolConfig, matrix: str) -> tuple[TensorEntry, TensorEntry]:
    """The two planes of a matrix in codes of 3 bits. Raises BundleError if they are not those of one matrix."""
    low, high = config.tensors[f"{matrix}.low"], config.tensors.get(f"{matrix}.high")
    if low.dtype != "uint8" or len(low.shape) != 2 or low.shape[1] % 8 or not low.bytes:
        expected = "uint8 [K, N/4], N a multiple of 32"
        raise BundleError(path, f"weights.tensors.{matrix}.low", f"{low.dtype} {list(low.shape)}", expected)
    channels, columns = low.shape
    if high is None or (high.dtype, high.shape) != ("uint8", (channels, columns // 2)):
        got = "no such tensor" if high is None else f"{high.dtype} {list(high.shape)}"
        expected = f"uint8 {[channels, columns // 2]}, beside {list(low.shape)} of {matrix}.low"
        raise BundleError(path, f"weights.tensors.{matrix}.high", got, expected)
    return low, high


def _copy_weights(
    source: Path, of_source: FileEntry, target: Path, planes: Collection[tuple[TensorEntry, TensorEntry]]
) -> None:
    """Copies a weights file to `target`, which may be a link to it, with the planes of its matrices of 3 bits as the
    current version has them.

    Raises BundleError if it is damaged: the copy gets a hash of its own.
    """
    check_size(source, of_source)
    check_hash(source, of_source, sha256(source), otherwise="")
    target.unlink()
    shutil.copyfile(source, target)
    data = np.memmap(source, np.uint8, "r")
    with target.open("r+b") as file:
        for pair in planes:
            low, high = (data[entry.offset : entry.offset + entry.bytes].reshape(entry.shape) for entry in pair)
            step = max(1, _CODES_AT_ONCE // (4 * low.shape[1]))
            for first in range(0, len(low), step):
                rows = slice(first, first + step)
                packed = pack_codes(_codes_of_version_6(low[rows], high[rows]))
                for entry, part in zip(pair, packed, strict=True):
                    file.seek(entry.offset + first * entry.shape[1])
                    file.write(part.data)


def _codes_of_version_6(low: ByteArray, high: ByteArray) -> ByteArray:
    """Codes uint8 [N, K] of the planes that version 6 had: the two low bits of each code, uint8 [K, N / 4], and the top
    bits, uint8 [K, N / 8]. Byte j of the 8 bytes of 32 outputs had the low bits of outputs j, 8 + j, 16 + j and 24 + j.
    """
    channels, rows = len(low), 4 * low.shape[1]
    tiles = low.reshape(channels, rows // 32, 1, 8) >> np.arange(0, 8, 2, dtype=np.uint8)[:, None] & np.uint8(3)
    top = np.unpackbits(high, axis=1, bitorder="little")
    return (tiles.reshape(channels, rows) | np.left_shift(top, 2, dtype=np.uint8)).T


def _upgraded(document: dict[str, Any]) -> dict[str, Any]:
    """A config of version 3 or 4 with the keys of version 5."""
    config = {key: value for key, value in document.items() if key != "refresh"}
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
