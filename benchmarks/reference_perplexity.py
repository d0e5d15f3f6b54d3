"""Perplexity of the source checkpoint and of the peer on exactly the windows that `sol-rt perplexity` scores.

    python benchmarks/reference_perplexity.py BUNDLE CHECKPOINT -f FILE -c 512 --chunks 40
    ... --genai GENAI_FOLDER --peer-python PEER/bin/python     the peer too

CHECKPOINT is a Hugging Face folder, run in float32 by transformers. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np
from workers.client import WorkerProcess

from sol_rt.bundle import Bundle
from sol_rt.home import find_bundle
from sol_rt.perplexity import estimate, windows
from sol_rt.text import Tokenizer


def source_nll(folder: Path, cut: list[list[int]]) -> list[float]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    nll: list[float] = []
    with torch.no_grad():
        for window in cut:
            ids, first = torch.tensor([window]), len(window) // 2
            logits = model(ids).logits[0, first:-1].double()
            nll += torch.nn.functional.cross_entropy(logits, ids[0, first + 1 :], reduction="none").tolist()
    return nll


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="folder, or the name of an exported bundle")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("-f", "--file", type=Path, required=True)
    parser.add_argument("-c", "--ctx-size", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=40)
    parser.add_argument("--genai", type=Path)
    parser.add_argument("--peer-python", type=Path)
    args = parser.parse_args()
    bundle = Bundle.open(find_bundle(args.bundle))
    tokens = Tokenizer.from_bundle(bundle).encode(args.file.read_text(encoding="utf-8"), add_special_tokens=False)
    cut = windows(tokens, args.ctx_size, None, args.chunks)
    rows = {"source fp32 (transformers)": source_nll(args.checkpoint, cut)}
    if args.genai:
        with WorkerProcess.start("genai", args.peer_python, args.genai, os.cpu_count() or 1) as peer:
            answer = peer.ask(do="nll", windows=cut)
        rows["onnxruntime-genai int4"] = [x for window in answer["nll"] for x in window]
    report = {}
    for name, nll in rows.items():
        result = estimate(-np.asarray(nll), len(cut), 1.0, {})
        report[name] = {"ppl": result.ppl, "stderr": result.stderr, "tokens": result.tokens, "chunks": len(cut)}
    print(json.dumps({"file": args.file.name, "ctx_size": args.ctx_size, **report}, indent=2))


if __name__ == "__main__":
    main()
