"""Measures what the readout that an export fits avoids on other texts, beside a choice by surprise alone.

    python benchmarks quality.readout BUNDLE -f austen-emma.txt -f melville-moby_dick.txt

The readout is fitted anew to as many of the package's sample texts as a quick export takes. Of each text two windows of
512 tokens are scored, from the middle on. *Avoids* is the share of what random steps under the cheaper of two
neighbouring actions add, mean over pairs and of each; z counts standard errors over stretches of 64 steps.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sol_rt.bundle.config import BLOCK
from sol_rt.export.actions.calibration_text import LONG, package_text
from sol_rt.export.actions.effort import Effort
from sol_rt.export.actions.readout import SCALARS, Steps, fit_readout, gains, plain_actions, steps_of
from sol_rt.export.runs import open_runs
from sol_rt.progress import silent

_WINDOW, _PARTS = 512, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="folder of the bundle")
    parser.add_argument("-f", "--file", type=Path, action="append", required=True, help="text; several are allowed")
    given = parser.parse_args()
    engine = open_runs(given.bundle)
    bundle, tokenizer = engine.bundle, engine.bundle.tokenizer()
    order = plain_actions(bundle.config)
    began = time.process_time()
    text = package_text(tokenizer, bundle.config.model.max_context, LONG)
    scales = [entry.shape for name, entry in bundle.config.tensors.items() if name.endswith(".scale")]
    weights = BLOCK * sum(map(math.prod, scales))
    fitted = fit_readout(given.bundle, text, Effort.quick(weights, coded=False).windows_of_all, silent)
    print(f"fitted in {time.process_time() - began:.0f} s of CPU; {[action.tag for action in order]}")
    windows = []
    for file in given.file:
        tokens = tokenizer.encode(file.read_text(encoding="utf-8"))[: -_WINDOW * _PARTS]
        for part in range(_PARTS):
            start = len(tokens) * (1 + part) // (1 + _PARTS)
            windows.append(steps_of(engine, tokens[start : start + _WINDOW], order, silent))
    surprise = np.zeros(windows[0].inputs.shape[-1])
    surprise[SCALARS.index("surprise")] = 1
    _report("surprise", windows, surprise)
    if fitted is None:
        print("readout: avoids too little, so there is none")
    else:
        _report("readout", windows, np.array(fitted.weights))
        print(f"closed gates: {', '.join(fitted.closed) or 'none'}")


def _report(name: str, windows: list[Steps], weights: npt.NDArray[np.float64]) -> None:
    pairs = gains(windows, [weights] * len(windows))
    steps, found = sum(window.added.shape[1] for window in windows), pairs.mean(1)
    print(f"{name}: avoids {found.sum() / steps:.1%}, z {found.sum() / found.std(ddof=1) / len(found) ** 0.5:.1f}")
    print("  " + ", ".join(f"{share:.1%}" for share in pairs.sum(0) / steps))


if __name__ == "__main__":
    main()
