"""Writes what a fuzz target begins with, mostly files that tests keep: `seeds.py TARGET FOLDER`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

LONGEST = 20480  # bytes: what run.sh lets an input have, and longer ones would only be cut
TESTS = Path(__file__).resolve().parents[4] / "runtime_tests"
GOLDEN = TESTS / "golden" / "tiny"


def small_config() -> bytes:
    """The golden bundle's config with fewer variants, actions, tensors and files: short inputs run fast."""
    config = json.loads((GOLDEN / "sol_config.json").read_text(encoding="utf-8"))
    variants = config["variants"] = {key: config["variants"][key] for key in ("s100-q8", "s100-qmix", "s060-q4")}
    config["actions"] = [action for action in config["actions"] if action["tag"][5:] in variants]
    kept = {config["dense"], *(action["tag"] for action in config["actions"])}
    config["policy"]["actions"] = [tag for tag in config["policy"]["actions"] if tag in kept]
    config["weights"]["tensors"] = dict(list(config["weights"]["tensors"].items())[:4])
    wanted = {config["weights"]["file"], config["policy"]["file"], *(variant["file"] for variant in variants.values())}
    config["files"] = {name: entry for name, entry in config["files"].items() if name in wanted}
    return json.dumps(config, separators=(",", ":")).encode()


def seeds(target: str) -> list[bytes]:
    """Inputs of a target. The target `bundle` chooses its reader by the first byte."""
    if target == "bundle":
        configs = [*sorted((TESTS / "corpus" / "config").iterdir()), GOLDEN / "sol_config.json"]
        graphs = [*sorted((TESTS / "corpus" / "graph").iterdir()), *sorted(GOLDEN.glob("*.onnx"))]
        tags = [b"k030-s050-q4", b"k100-s100-qmix", b"k100-s100-q5"]
        return [
            b"\0" + small_config(),
            *(b"\0" + path.read_bytes() for path in configs),
            *(b"\1" + path.read_bytes() for path in graphs),
            *(b"\2" + tag for tag in tags),
        ]
    folder = Path(__file__).parent / "corpus" / target
    return [path.read_bytes() for path in sorted(folder.iterdir())] if folder.is_dir() else []


def main() -> None:
    target, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(seeds(target)):
        if len(content) > LONGEST:
            continue
        (folder / f"seed-{number}").write_bytes(content)


if __name__ == "__main__":
    main()
