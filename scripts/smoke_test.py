"""Tries an installed wheel: `python scripts/smoke_test.py`, in an environment with the wheel and the package onnx.

Writes a tiny bundle of random weights and scores the same tokens under every action twice, by the native operators of
the installed package and by standard operators. Ends with an error if the package has no native operators, lies in the
source tree, or if the two disagree. Needs neither torch nor a compiler.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
TOLERANCE = 0.2
"""Nats, in the mean over the tokens: for random weights, rounding decides which channels and KV pages are chosen."""


def main() -> int:
    import sol_rt
    from sol_rt import SolModel
    from sol_rt.ops import library_path

    installed, library = Path(sol_rt.__file__).resolve().parent, library_path()
    if installed.is_relative_to(ROOT / "sol_rt"):
        sys.exit(f"{installed}: the source tree, expected an installed wheel")
    if library is None or not library.resolve().is_relative_to(installed):
        sys.exit(f"{installed}: no native operators")

    sys.path.append(str(ROOT / "runtime_tests"))
    from helpers.tiny_bundle import write_bundle

    tokens = list(np.random.default_rng(0).integers(3, 80, 48))
    with tempfile.TemporaryDirectory() as folder:
        bundle = write_bundle(Path(folder) / "tiny", policy=True)
        native, standard = (
            SolModel.from_pretrained(bundle, provider="cpu", native_ops=native_ops) for native_ops in (True, False)
        )
        actions, worst = native.bundle.config.actions, 0.0
        for entry in actions:
            schedule = f"fixed:{entry.action.tag}"
            got, expected = (model.score(tokens, context=8, schedule=schedule) for model in (native, standard))
            worst = max(worst, abs(float(got.logprobs.mean() - expected.logprobs.mean())))
        if not worst <= TOLERANCE:
            sys.exit(f"{library}: mean log-probabilities differ by {worst:.3g} nats, expected at most {TOLERANCE}")
        steps = native.generate("w1 w2 w3", max_new_tokens=8, budget=0.7, temperature=0.0)
        del native, standard  # Windows removes no file that is mapped
    print(f"{library}: {len(actions)} actions agree within {worst:.2g} nats; generated {len(steps.tokens)} tokens")
    return 0


if __name__ == "__main__":
    sys.exit(main())
