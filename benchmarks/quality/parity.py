"""Runs a released model down the parity ladder: the rungs of runtime_tests/export/test_families.py, on real weights.

    python benchmarks quality.parity MODEL
    ... --work FOLDER     where the float32 folder and the bundle are written; by default a temporary folder

MODEL is an alias, a .gguf or a checkpoint folder. `make parity MODEL=smollm2-135m` does the same. Prints a table:

1. source: the same description and the same tensors from MODEL as from a float32 safetensors folder of its weights,
   which transformers reads.
2. graph: the largest difference of a logit of the float32 model from transformers, which reads that folder, in units of
   the logits' standard deviation: a prompt, then 32 decode steps. Nothing is rounded.
3. 8 bits: the root mean square of the same differences, of a bundle of 8 bits at its dense action. Weights are rounded
   without a calibration.
4. generation: how many of 64 greedy tokens of that bundle are those of the reference model of its arithmetic. Where
   they part, the reference model's two best logits differ by `margin`, relative to the best.

A model of N weights takes 4 N bytes of memory, and as much on the disk.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from peers.peer_models import float32_folder
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.export import export_bundle
from sol_rt.export.parity import TEXT
from sol_rt.export.sources.decoder import from_hf_config
from sol_rt.export.sources.open_checkpoint import open_checkpoint
from sol_rt.generate.native.engine import Engine
from sol_rt.store.pull import resolve
from sol_rt.train.reference_model.model import UNROUNDED, ReferenceModel
from sol_rt.train.reference_model.weights import FloatMatrix, read_checkpoint

DENSE = Action(1.0, 1.0, 8)
STEPS, TOKENS = 32, 64
_LONGER = " The book said nothing of the storm, and nothing of the night on which the lamp went out and nobody came."

Logits = npt.NDArray[np.float32]


def check_source(model: Path, folder: Path) -> int:
    """Compares a model's description and tensors with those of its float32 folder; returns the number of tensors.

    Raises SystemExit where they differ.
    """
    own, written = open_checkpoint(model), open_checkpoint(folder)
    described, other = (replace(from_hf_config(each.config), ropes=()) for each in (own, written))
    if described != other:
        raise SystemExit(f"parity.py: {model}: described as {described}, its folder as {other}")
    for name in own.names():
        if not np.array_equal(own.read(name), written.read(name)):
            raise SystemExit(f"parity.py: {model}: tensor {name} is another one in the folder")
    return len(own.names())


def transformers_logits(folder: Path, ids: list[int]) -> Logits:
    """The logits of transformers in float32, [T, vocab]."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.inference_mode():
        logits: Logits = model(torch.tensor([ids])).logits[0].numpy()
    return logits


@torch.inference_mode()
def float_logits(model: Path, ids: list[int]) -> Logits:
    """The logits of the reference model with the source's own weights, [T, vocab]; STEPS of them one by one."""
    exact, tokens = ReferenceModel(read_checkpoint(model, FloatMatrix), UNROUNDED), torch.tensor([ids])
    cache, first = exact.new_cache(1), len(ids) - STEPS
    prompt, _ = exact(tokens[:, :first], DENSE, cache)
    steps = [exact.step(tokens[:, i], [DENSE], cache)[0] for i in range(first, len(ids))]
    return torch.cat([prompt[0], *steps]).numpy()


def bundle_logits(bundle: Bundle, ids: list[int]) -> Logits:
    """The logits of a bundle, [T, vocab]; STEPS of them one by one."""
    engine, first = Engine(bundle, provider="cpu"), len(ids) - STEPS
    prompt = engine.forward(ids[:first], DENSE, num_logits=first).logits
    return np.concatenate([prompt, *(engine.forward([token], DENSE).logits for token in ids[first:])])


def engine_tokens(bundle: Bundle, ids: list[int]) -> list[int]:
    """TOKENS greedy tokens of a bundle."""
    engine = Engine(bundle, provider="cpu")
    tokens = [int(engine.forward(ids, DENSE).logits[0].argmax())]
    while len(tokens) < TOKENS:
        tokens.append(int(engine.forward(tokens[-1:], DENSE).logits[0].argmax()))
    return tokens


@torch.inference_mode()
def reference_tokens(bundle: Bundle, ids: list[int]) -> Iterator[tuple[int, float]]:
    """Greedy tokens of the reference model, each with the distance of the two best logits relative to the best."""
    exact = ReferenceModel.from_bundle(bundle.path)
    cache = exact.new_cache(1)
    logits = exact(torch.tensor([ids]), DENSE, cache, num_logits=1)[0][0, 0]
    while True:
        second, best = logits.sort().values[-2:].tolist()
        token = int(logits.argmax())
        yield token, (best - second) / abs(best)
        logits = exact.step(torch.tensor([token]), [DENSE], cache)[0][0]


def generation(bundle: Bundle, ids: list[int]) -> str:
    """Counts a bundle's greedy tokens that are the reference model's, and gives the margin at the first difference."""
    for index, (got, (wanted, margin)) in enumerate(
        zip(engine_tokens(bundle, ids), reference_tokens(bundle, ids), strict=False)
    ):
        if got != wanted:
            return f"{index} of {TOKENS}, then at a margin of {margin:.1e}"
    return f"{TOKENS} of {TOKENS}"


def run(source: str, work: Path) -> str:
    """The row of a model, its files written into `work`."""
    model, name = resolve(source, lambda step, done, total: None)
    folder = float32_folder(model, work) if model.is_file() else model
    tensors = check_source(model, folder)
    levels: dict[str, Any] = {"bits": (8,), "channel_density": (1.0,), "kv_density": (1.0,)}
    export_bundle(str(model), work / "bundle", **levels, calibration="none", parity=False)
    bundle = Bundle.open(work / "bundle")
    ids = bundle.tokenizer().encode(TEXT + _LONGER)
    expected = transformers_logits(folder, ids)
    spread = float(expected.std())
    exact = float(np.abs(float_logits(model, ids) - expected).max()) / spread
    rounded = float(np.sqrt(np.mean((bundle_logits(bundle, ids) - expected) ** 2))) / spread
    return f"| {name} | {tensors} | {exact:.1e} | {rounded:.4f} | {generation(bundle, ids)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="alias, .gguf or checkpoint folder")
    parser.add_argument("--work", type=Path, help="folder for what is written")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        print("| model | source, equal tensors | graph, float | graph, 8 bits | generation |\n|---|--:|--:|--:|---|")
        print(run(args.model, work))


if __name__ == "__main__":
    main()
