"""A bundle's graph files, written as its variants say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sol_rt.config import FileEntry, SolConfig
from sol_rt.export.architecture import Decoder
from sol_rt.export.graph import build_graph, weight_bytes


def write_graphs(folder: Path, config: SolConfig, decoder: Decoder) -> SolConfig:
    """Writes the graph of every width into `folder`, in place of those there.

    Returns:
        The config with `weight_bytes` of all variants and the sizes of the graphs, not their hashes.
    """
    variants = {
        key: replace(variant, weight_bytes=weight_bytes(decoder, config.tensors, variant))
        for key, variant in config.variants.items()
    }
    files = dict(config.files)
    for file, widths in {variant.file: variant.widths for variant in variants.values()}.items():
        content = build_graph(decoder, widths, config.tensors, config.weights_file, config.kv).SerializeToString()
        (folder / file).write_bytes(content)
        files[file] = FileEntry(len(content), "")
    return replace(config, variants=variants, files=files)
