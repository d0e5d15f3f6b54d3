"""Checks the runtime's promises on a real model: budgets held, exact at budget 1.0, memory, start-up time.

    python benchmarks/promises.py smollm2-135m

Prints one line per promise. The program exports the source with a randomly initialised policy into a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from sol_rt import SolModel
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.policy_inputs import KNOWN_SCALARS
from sol_rt.engine.engine import Engine
from sol_rt.export import export_bundle
from sol_rt.export.graphs.policy_graph import PolicyShape, random_policy_parameters
from sol_rt.export.policy_file import TrainedPolicy, write_policy
from sol_rt.export.sources.open_checkpoint import open_checkpoint
from sol_rt.store.pull import resolve

PROMPT = "The history of the steam engine begins with"
KV_DENSITIES, CHANNEL_DENSITIES, BITS = (1.0, 0.5, 0.25, 0.1), (1.0, 0.75, 0.5, 0.4, 0.25), (8, 6, 4)

_RESIDENT = """
import ctypes
import sys
from pathlib import Path
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.engine.engine import Engine
bundle = Bundle.open(sys.argv[1])
engine = Engine(bundle, provider="cpu")
keys = list(bundle.config.variants) if sys.argv[2] == "all" else [bundle.config.dense.variant]
engine.load(keys)
engine.forward(list(range(3, 40)), bundle.config.dense)
for key in keys:
    engine.forward([5], Action(1.0, bundle.config.variants[key].channel_density, bundle.config.variants[key].bits))
ctypes.CDLL(None).malloc_trim(0)  # what the C library keeps of freed memory comes and goes by some MB
print(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")))
"""


def export_with_random_policy(source: str, folder: Path) -> Path:
    path, _ = resolve(source, lambda step, done, total: None)
    hidden = int(open_checkpoint(path).config["hidden_size"])
    actions = tuple(
        Action(kv_density, channel_density, bits)
        for bits in BITS
        for channel_density in CHANNEL_DENSITIES
        for kv_density in KV_DENSITIES
    )
    shape = PolicyShape(hidden, len(KNOWN_SCALARS), len(actions))
    policy = TrainedPolicy(shape, KNOWN_SCALARS, actions, "random", random_policy_parameters(0, shape))
    write_policy(folder / "policy.safetensors", policy)
    export_bundle(
        str(path),
        folder / "bundle",
        bits=BITS,
        channel_density=CHANNEL_DENSITIES,
        kv_density=KV_DENSITIES,
        policy=folder / "policy.safetensors",
        calibration="none",
        parity=False,
    )
    return folder / "bundle"


def budgets(model: SolModel, steps: int) -> None:
    print(f"achieved budget over {steps} decode steps, cost model {model.cost.name}:")
    for schedule in ("uniform", "random", "sol"):
        for budget in (0.1, 0.35, 0.4, 0.5, 0.7, 0.9):
            run = model.generate(
                PROMPT, budget=budget, schedule=schedule, max_new_tokens=steps + 1, eos_token_id=[], seed=0
            )
            floored = f" (below the cheapest action: floor {run.achieved_budget:.3f} served)" if run.floored else ""
            print(f"  {schedule:8} {budget:.2f} -> {run.achieved_budget:.4f}{floored}")


def exactness(model: SolModel, bundle: Path, count: int) -> None:
    """Compares budget 1.0 under the policy's schedule with the dense graph alone."""
    run = model.generate(PROMPT, budget=1.0, schedule="sol", max_new_tokens=count, eos_token_id=[])
    engine = Engine(Bundle.open(bundle), provider="cpu")
    dense, tokens = engine.bundle.config.dense, []
    logits = engine.forward(model.tokenizer.encode(PROMPT, add_special_tokens=True), dense).logits[0]
    while True:
        tokens.append(int(logits.argmax()))
        if len(tokens) == count:
            break
        logits = engine.forward(tokens[-1:], dense).logits[0]
    print(f"budget 1.0, {count} greedy tokens equal to the dense graph alone: {tokens == run.tokens}")


def without_library(bundle: Path, count: int) -> None:
    """Compares function bodies with kernels: greedy tokens, and the largest difference of the logits after a prompt."""
    native, bodies = (SolModel.from_pretrained(bundle, provider="cpu", native_ops=ops) for ops in (True, False))
    for action in ("k100-s100-q8", "k100-s100-q6", "k100-s100-q4"):
        equal, texts = 0, (PROMPT, "Water boils at", "def fibonacci(n):", "Once upon a time")
        for text in texts:
            runs = [
                model.generate(text, schedule=f"fixed:{action}", max_new_tokens=count, eos_token_id=[]).tokens
                for model in (native, bodies)
            ]
            equal += runs[0] == runs[1]
        tokens = native.tokenizer.encode(PROMPT, add_special_tokens=True)
        rows = []
        for model in (native, bodies):
            model.engine.reset()
            rows.append(model.engine.forward(tokens, Action.parse(action)).logits[0].copy())
        difference = np.abs(rows[0] - rows[1]).max() / rows[0].std()
        print(
            f"library absent, {action}: {count} greedy tokens equal on {equal} of {len(texts)} prompts, "
            f"largest logit difference after the first {difference:.2g} standard deviations"
        )


def memory(bundle: Path) -> None:
    one, every = (
        int(subprocess.run([sys.executable, "-c", _RESIDENT, bundle, which], capture_output=True, check=True).stdout)
        for which in ("one", "all")
    )
    print(f"resident, all variants / one: {every / 1e3:.0f} / {one / 1e3:.0f} MB = {every / one:.3f}")


def start_up(bundle: Path) -> None:
    command = [sys.executable, "-m", "sol_rt", "generate", "-m", str(bundle), "-n", "1", "-p", "Hello", "--json"]
    times = []
    for _ in range(4):  # the first warms the file cache
        start = time.perf_counter()
        answer = subprocess.run(command, capture_output=True, check=True, text=True).stdout
        times.append(time.perf_counter() - start)
    first = json.loads(answer)["time_to_first_token_ms"]
    print(f"`sol-rt generate -n 1`: {min(times[1:]):.2f} s wall, first token after {first:.0f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="alias, .gguf or checkpoint folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = export_with_random_policy(args.source, Path(folder))
        model = SolModel.from_pretrained(bundle, provider="cpu")
        budgets(model, 128)
        exactness(model, bundle, 256)
        without_library(bundle, 32)
        memory(bundle)
        start_up(bundle)


if __name__ == "__main__":
    main()
