"""Writes what a fuzz target begins with, mostly files that tests keep: `seeds.py TARGET FOLDER`."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

LONGEST = 4096  # bytes: what run.sh lets an input have, because longer ones take time and show nothing more
TESTS = Path(__file__).resolve().parents[4] / "runtime_tests"
GOLDEN = TESTS / "golden" / "tiny"


def small_configs() -> list[dict[str, Any]]:
    """Configs that the reader takes, with each optional part in one of them, and few entries: short inputs run fast."""
    config = json.loads((GOLDEN / "sol_config.json").read_text(encoding="utf-8"))
    variants = config["variants"] = {key: config["variants"][key] for key in ("s100-q8", "s060-q4")}
    config["actions"] = [action for action in config["actions"] if action["tag"][5:] in variants][:3]
    config["policy"]["actions"] = [action["tag"] for action in config["actions"]]
    config["policy"]["scalars"] = config["policy"]["scalars"][:2]
    tensors = ("embed.scale", "layers.1.down.scale", "embed.plane1", "embed.plane2")
    config["weights"]["tensors"] = {name: config["weights"]["tensors"][name] for name in tensors}
    wanted = {config["weights"]["file"], config["policy"]["file"], *(variant["file"] for variant in variants.values())}
    config["files"] = {name: entry for name, entry in config["files"].items() if name in wanted}
    full = variants["s100-q8"]

    mixed = copy.deepcopy(config)
    mixed["variants"]["s100-qmix"] = full | {"bits": "mixed", "lm_head_bits": 6, "file": "policy.onnx"}
    mixed["variants"]["s100-qmix"]["layer_bits"] = [[8, 4, 4, 6], [4, 6, 8, 4]]
    mixed["policy"] = None

    three = copy.deepcopy(config)
    three["variants"]["s100-q3"] = full | {"bits": 3, "file": "policy.onnx"}
    three["variants"]["s100-q3"] |= {"layer_bits": [[3, 4, 3, 3], [3, 3, 3, 4]]}
    three["variants"]["s100-q3"] |= {"lm_head_screen": {"tail_offset": 0.5, "bits": 3, "candidates": 32}}
    three["weights"]["tensors"]["codebook"] = {"dtype": "int8", "shape": [4, 8], "offset": 0, "bytes": 32}
    three |= {"format_version": 6, "policy": None}

    states = copy.deepcopy(config)
    states["kv"] |= {"layers": ["conv", "attention"], "conv_size": 3, "dense_layers": [1]}

    windows = copy.deepcopy(config)
    windows["kv"] |= {"windows": [0, 512], "dtype": "int8"}
    windows["policy"]["gain_over_hull"] = 0.001
    return [config, mixed, three, states, windows]


def seeds(target: str) -> list[bytes]:
    """Inputs of a target. The target `bundle` chooses its reader by the first byte."""
    if target == "bundle":
        configs = [json.dumps(config, separators=(",", ":")).encode() for config in small_configs()]
        damaged = sorted((TESTS / "corpus" / "config").iterdir())
        graphs = [*sorted((TESTS / "corpus" / "graph").iterdir()), *sorted(GOLDEN.glob("*.onnx"))]
        tags = [b"k030-s050-q4", b"k100-s100-qmix", b"k100-s100-q5"]
        return [
            *(b"\0" + content for content in configs),
            *(b"\0" + path.read_bytes() for path in damaged),
            *(b"\1" + path.read_bytes() for path in graphs),
            *(b"\2" + tag for tag in tags),
        ]
    folder = Path(__file__).parent / "corpus" / target
    return [path.read_bytes() for path in sorted(folder.iterdir())] if folder.is_dir() else []


def main() -> None:
    target, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(seeds(target)):
        if len(content) <= LONGEST:
            (folder / f"seed-{number}").write_bytes(content)


if __name__ == "__main__":
    main()
