"""Writes a bundle's graphs anew from its config and weights, for bundles of an older format with the same weights.

`python -m sol_rt.export.migrate BUNDLE`: nothing is quantized, measured or trained again. Measured milliseconds and
losses stay as they are.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from sol_rt.bundle.config import CONFIG_NAME, FORMAT_VERSION, SAME_WEIGHTS_SINCE, FileEntry, SolConfig
from sol_rt.errors import BundleError, SolError
from sol_rt.export.graphs.graph import build_graph
from sol_rt.export.sources.decoder import from_hf_config


def regraph(folder: Path) -> list[str]:
    """Rewrites the graphs of the bundle in `folder` and its config; returns the names of the graph files.

    Raises BundleError where files are missing or damaged, or of a format whose weights are not today's, CheckpointError
    for an architecture that no graph here has; nothing is written then.
    """
    path = folder / CONFIG_NAME
    document = _read(path)
    version = document.get("format_version")
    if not isinstance(version, int) or not SAME_WEIGHTS_SINCE <= version <= FORMAT_VERSION:
        raise BundleError(path, "format_version", version, f"{SAME_WEIGHTS_SINCE} to {FORMAT_VERSION}")
    document["format_version"] = FORMAT_VERSION
    document.pop("refresh", None)  # older configs have it; nothing reads it any more
    config = SolConfig.from_json_dict(document, path)
    decoder = from_hf_config(_read(folder / "config.json"), config.model.max_context)
    variants = {variant.file: variant for variant in config.variants.values()}
    graphs = {
        file: build_graph(decoder, variant.widths, config.tensors, config.weights_file, config.kv).SerializeToString()
        for file, variant in variants.items()
    }
    files = {file: FileEntry(len(content), hashlib.sha256(content).hexdigest()) for file, content in graphs.items()}
    text = json.dumps(replace(config, files={**config.files, **files}).to_json_dict(), indent=2, ensure_ascii=False)
    for file, content in graphs.items():
        (folder / file).write_bytes(content)
    path.write_text(text + "\n", encoding="utf-8")
    return list(graphs)


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


def main() -> int:
    parser = argparse.ArgumentParser(description="Write a bundle's graphs anew, as this version of sol_rt has them.")
    parser.add_argument("bundle", type=Path, help="the bundle's folder")
    folder = parser.parse_args().bundle
    try:
        names = regraph(folder)
    except SolError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    print("\n".join(names))
    return 0


if __name__ == "__main__":
    sys.exit(main())
