"""Measures the perplexity of the source checkpoint, and of peers, on the same windows as `sol-rt perplexity`.

    python benchmarks/reference_perplexity.py BUNDLE CHECKPOINT -f FILE -c 512 --chunks 40
    ... --peers genai,optimum --environments .venv-peers     peers too, as `make peers` made them

Prints one JSON object. CHECKPOINT is an alias, a .gguf or a Hugging Face folder; transformers runs it in float32.
llama.cpp is left out, because its own program llama-perplexity measures this.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np
from peer_models import float32_folder
from workers.client import WorkerProcess

from sol_rt.bundle.bundle import Bundle
from sol_rt.evaluation.quality.perplexity import estimate, text_windows
from sol_rt.store.home import find_bundle
from sol_rt.store.pull import resolve


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
    parser.add_argument("checkpoint", help="alias, .gguf or checkpoint folder")
    parser.add_argument("-f", "--file", type=Path, required=True)
    parser.add_argument("-c", "--ctx-size", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=40)
    parser.add_argument("--peers", default="", help="names separated by commas")
    parser.add_argument(
        "--environments", type=Path, default=Path(".venv-peers"), help="folder with one environment per peer"
    )
    args = parser.parse_args()
    bundle = Bundle.open(find_bundle(args.bundle))
    text = args.file.read_text(encoding="utf-8")
    cut = text_windows(text, bundle.tokenizer(), bundle.config.model, args.ctx_size, args.chunks)
    models = args.environments / "models" / bundle.config.model.name
    checkpoint, _ = resolve(args.checkpoint, lambda step, done, total: None)
    if checkpoint.is_file():
        models.mkdir(parents=True, exist_ok=True)
        checkpoint = float32_folder(checkpoint, models)
    rows = {"source fp32 (transformers)": source_nll(checkpoint, cut)}
    for name in [name for name in args.peers.split(",") if name not in ("", "llama.cpp")]:
        python = args.environments / name / "bin" / "python"
        with WorkerProcess.start(name, python, models / name, os.cpu_count() or 1) as peer:
            rows[f"{peer.version}, {peer.settings}"] = np.concatenate(peer.ask(do="nll", windows=cut)["nll"]).tolist()
    report = {}
    for name, nll in rows.items():
        result = estimate(-np.asarray(nll), len(cut), 1.0, {})
        report[name] = {"ppl": result.ppl, "stderr": result.stderr, "tokens": result.tokens, "chunks": len(cut)}
    print(json.dumps({"file": args.file.name, "ctx_size": args.ctx_size, **report}, indent=2))


if __name__ == "__main__":
    main()
