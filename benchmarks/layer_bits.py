"""Measures what each layer's first MLP matrix loses at 3 bits: the divergence if it is read at 4, one layer at a time.

    python benchmarks/layer_bits.py BUNDLE -f TEXT --windows 8

The bundle has a graph of 3 bits and one of 4. Figures are divergences from the dense action in nats per token, at the
ends of windows of up to 512 tokens after a dense prompt: on the exporter's sample texts, and on TEXT if given. ± is
the standard error of the paired difference from the graph of 3 bits. A layer that the graph reads at 4 bits has no row.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from low_bits import spread_windows

from sol_rt.bundle.actions import Action
from sol_rt.bundle.bits import THREE
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import CONFIG_NAME
from sol_rt.engine.engine import Engine
from sol_rt.export.actions.calibration_text import sample_windows
from sol_rt.export.actions.losses import Candidate, Losses, token_divergences
from sol_rt.store.home import find_bundle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("-f", "--file", type=Path, help="a text to score beside the sample texts")
    parser.add_argument("--windows", type=int, default=8, help="of the file, spread evenly over it")
    parser.add_argument("--scored", type=int, default=48, help="tokens of each window")
    arguments = parser.parse_args()

    source = Bundle.open(find_bundle(arguments.model))
    config = source.config
    action = max(Action(1.0, each.channel_density, THREE) for each in config.variants.values() if each.bits == THREE)
    layers = config.variants[action.variant].precision.layers or ()
    windows = list(sample_windows(source.tokenizer(), config.model.max_context))
    if arguments.file:
        windows += map(tuple, spread_windows(source, arguments.file, arguments.windows))

    def divergences(bundle: Bundle) -> Losses:
        engine, last = Engine(bundle, provider="cpu"), arguments.scored + 1
        found = [
            token_divergences(engine, [window], config.dense, [Candidate(action)], context=len(window) - last)[0]
            for window in windows
        ]
        return np.concatenate(found)

    base = divergences(source)
    print(f"{config.model.name}, {action.tag}, {len(windows)} windows, {base.size} tokens\n")
    print(f"| layer read at 4 bits | divergence | less by |\n|--:|--:|--:|\n| none | {base.mean():.4f} | |")
    for layer, bits in enumerate(layers):
        if bits.up != THREE:
            continue
        with tempfile.TemporaryDirectory(dir=source.path.parent) as folder:
            less = base - divergences(_with_four_bits(source, Path(folder), layer))
        error = less.std(ddof=1) / math.sqrt(less.size)
        print(f"| {layer} | {(base - less).mean():.4f} | {less.mean():.4f} ± {error:.4f} |", flush=True)


def _with_four_bits(source: Bundle, folder: Path, layer: int) -> Bundle:
    """A copy of the bundle, of hard links, whose graph of 3 bits has one node of the graph of 4 bits."""
    variants = {each.bits: each for each in source.config.variants.values()}
    narrow, wide = (onnx.load(source.path / variants[bits].file, load_external_data=False) for bits in (THREE, 4))
    nodes = [[node for node in graph.graph.node if node.op_type == "DecoderLayer"] for graph in (narrow, wide)]
    nodes[0][layer].CopyFrom(nodes[1][layer])
    used = {name for node in narrow.graph.node for name in node.input}
    weights = {each.name: each for each in (*wide.graph.initializer, *narrow.graph.initializer) if each.name in used}
    del narrow.graph.initializer[:]
    narrow.graph.initializer.extend(weights.values())
    content = narrow.SerializeToString()

    raw: dict[str, Any] = json.loads((source.path / CONFIG_NAME).read_text(encoding="utf-8"))
    for each in raw["variants"].values():
        if each["bits"] == THREE:
            each["layer_bits"][layer] = [4, 4, 4, 4]
    file = variants[THREE].file
    raw["files"][file] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    for name in raw["files"]:
        if name != file:
            os.link(source.path / name, folder / name)
    (folder / file).write_bytes(content)
    (folder / CONFIG_NAME).write_text(json.dumps(raw), encoding="utf-8")
    return Bundle.open(folder)


if __name__ == "__main__":
    main()
