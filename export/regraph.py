"""Writes a bundle's graphs anew from its config and weights, for bundles of an older format with the same weights.

`python -m sol_rt.export.regraph BUNDLE`: nothing is quantized, measured or trained again. Measured milliseconds and
losses stay as they are.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from sol_rt.config import CONFIG_NAME, FORMAT_VERSION, FileEntry, SolConfig
from sol_rt.export.architecture import from_hf_config
from sol_rt.export.graph import build_graph

_OLDEST = 3
"""The first format whose weights are those of today."""


def regraph(folder: Path) -> list[str]:
    """Rewrites the graphs of the bundle in `folder` and its config; returns the names of the graph files.

    Raises ValueError for a format whose weights are not today's, OSError and BundleError where files are missing or
    damaged.
    """
    path = folder / CONFIG_NAME
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    version = document.get("format_version")
    if not isinstance(version, int) or not _OLDEST <= version <= FORMAT_VERSION:
        raise ValueError(f"{path}: format_version: got {version}, expected {_OLDEST} to {FORMAT_VERSION}; export again")
    document["format_version"] = FORMAT_VERSION
    config = SolConfig.from_json_dict(document, path)
    decoder = from_hf_config(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    graphs = {variant.file: variant for variant in config.variants.values()}
    files = dict(config.files)
    for file, variant in graphs.items():
        model = build_graph(decoder, variant.bits, config.tensors, config.weights_file, config.kv, variant.head_bits)
        content = model.SerializeToString()
        (folder / file).write_bytes(content)
        files[file] = FileEntry(len(content), hashlib.sha256(content).hexdigest())
    text = json.dumps(replace(config, files=files).to_json_dict(), indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
    return list(graphs)


if __name__ == "__main__":
    print("\n".join(regraph(Path(sys.argv[1]))))
