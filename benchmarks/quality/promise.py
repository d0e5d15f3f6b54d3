"""Measures on which texts the dial holds its loss: rise of perplexity and divergence, by text and allowed loss.

    python benchmarks quality.promise smollm2-135m -f valid.tokens.txt -f melville-moby_dick.txt

Windows are spread evenly over each text. Their last tokens run step by step after a dense prompt, dense and under
`--max-loss`, with costs in bytes. *Adds* is the rise of perplexity over dense with two standard errors of paired
tokens; *diverges* is the rise that is expected if the dense distribution is right. A text holds where it adds at most
what is allowed.
"""

from __future__ import annotations

import argparse
import itertools
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sol_rt import SolModel
from sol_rt.budget.cost.model import BytesCost
from sol_rt.budget.dial import DEFAULT_MAX_LOSS, Dial
from sol_rt.budget.losses import share_of_nats
from sol_rt.bundle.bundle import Bundle
from sol_rt.engine.distribution import Reference
from sol_rt.evaluation.quality.perplexity import text_windows
from sol_rt.store.home import find_bundle

DENSE = Dial(budget=1.0)
Floats = npt.NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("-f", "--file", type=Path, action="append", required=True, help="text; several are allowed")
    parser.add_argument("--max-loss", default=f"{DEFAULT_MAX_LOSS},0.01,0.02,0.05", help="shares, between commas")
    parser.add_argument("--schedule", help="hull or sol; default: the bundle's")
    parser.add_argument("--windows", type=int, default=8, help="of each text")
    parser.add_argument("--context", type=int, default=512, help="tokens before the steps")
    parser.add_argument("--scored", type=int, default=128, help="steps in each window")
    parser.add_argument("-t", "--threads", type=int)
    given = parser.parse_args()

    bundle = Bundle.open(find_bundle(given.model))
    model = SolModel.from_pretrained(bundle, provider="cpu", threads=given.threads, cost=BytesCost(bundle.config))
    allowed = [float(share) for share in given.max_loss.split(",")]
    dials = [Dial(max_loss=share, schedule=given.schedule) for share in allowed]
    print("| text | " + " | ".join(f"{share:.1%} adds | diverges | budget" for share in allowed) + " |")
    print("|---|" + "--:|" * 3 * len(allowed), flush=True)
    held = np.zeros((len(allowed), 2), int)
    for path in given.file:
        windows = spread_windows(bundle, path, given.windows, given.context + given.scored + 1)
        found = np.concatenate([under_dials(model, window, given.context, dials) for window in windows], axis=-1)
        cells = []
        for place, (added, divergence, cost) in enumerate(found):
            rise, expected = (share_of_nats(float(each.mean())) for each in (added, divergence))
            error = 2 * float(added.std(ddof=1)) / math.sqrt(added.size)
            cells.append(f"{rise:+.2%} ± {error:.2%} | {expected:.2%} | {cost.mean():.2f}")
            held[place] += [rise <= allowed[place], expected <= allowed[place]]
        print(f"| {path.stem} | {' | '.join(cells)} |", flush=True)
    counts = [f"{adds} | {diverges} |" for adds, diverges in held.tolist()]
    print(f"| hold, of {len(given.file)} | {' | '.join(counts)} |")


def under_dials(model: SolModel, window: list[int], context: int, dials: list[Dial]) -> Floats:
    """Losses over dense, divergences from it, and relative costs of a window's steps, float64 [dials, 3, n]."""
    engine, scored = model.engine, window[context:]
    engine.truncate(0)
    prefilled = engine.forward(window[:context], model.bundle.config.dense)
    references: list[Reference] = []
    dense: list[float] = []
    found = np.empty((len(dials), 3, len(scored) - 1))
    for row, dial in enumerate([DENSE, *dials], start=-1):
        steps = model.decoder(dial)
        steps.rewind(context, prefilled)
        for at, (token, target) in enumerate(itertools.pairwise(scored)):
            cost = steps.step(token).relative
            distribution = steps.output.distribution
            loss = -distribution.log_probability(target)
            if row < 0:
                references.append(Reference(distribution, np.float32))
                dense.append(loss)
            else:
                found[row, :, at] = loss - dense[at], references[at].divergence(distribution), cost
    return found


def spread_windows(bundle: Bundle, file: Path, count: int, size: int) -> list[list[int]]:
    """Windows of `size` tokens that `sol-rt perplexity` would cut, `count` at most, spread evenly over the text.

    Raises UsageError if the text is shorter than two windows.
    """
    cut = text_windows(file.read_text(encoding="utf-8"), bundle.tokenizer(), bundle.config.model, size)
    count = min(count, len(cut))
    return [cut[len(cut) * index // count] for index in range(count)]


if __name__ == "__main__":
    main()
