"""Writes any source that `sol-rt export` reads as a Hugging Face folder in float32, for peers that need one.

    python benchmarks peers.hf_folder SOURCE DEST

Prints the folder's path.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from safetensors.numpy import save_file

from sol_rt.export.sources.open_checkpoint import open_checkpoint
from sol_rt.store.pull import resolve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="alias, .gguf or checkpoint folder")
    parser.add_argument("dest", type=Path)
    args = parser.parse_args()
    path, _ = resolve(args.source, lambda step, done, total: None)
    checkpoint = open_checkpoint(path)
    args.dest.mkdir(parents=True, exist_ok=True)
    checkpoint.write_tokenizer(args.dest)
    config = {**checkpoint.config, "torch_dtype": "float32"}
    # optimum pins transformers below 5, which reads the rotary bases from these keys and otherwise takes 10000
    rope = config["rope_parameters"]
    config["rope_theta"] = rope.get("full_attention", rope)["rope_theta"]
    if "sliding_attention" in rope:
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    (args.dest / "config.json").write_text(json.dumps(config, indent=2))
    tensors = {name: checkpoint.read(name) for name in checkpoint.names()}
    save_file(tensors, args.dest / "model.safetensors", metadata={"format": "pt"})
    print(args.dest)


if __name__ == "__main__":
    main()
