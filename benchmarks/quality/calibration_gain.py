"""Measures what the calibrations of an export cost and gain: none, quick (the default without a stored one) and full.

    python benchmarks quality.calibration_gain MODEL -f FILE -o FOLDER
    ... --calibrations none,quick,full     which ones, the first and the last being what gains are shares of
    ... --chunks 8                         windows of FILE to score
    ... --actions s100-q8,s100-q4          variants to score, by default those that all bundles have

Exports MODEL into FOLDER/CALIBRATION, unless a bundle is there already; then scores the variants on FILE, which nothing
is calibrated on. Prints Markdown: seconds of each export (wall and processor), and for each variant its divergence from
the source's float32 distribution in nats a token. The first half of a window of 512 tokens is prefilled dense, as in
generation. With d a variant's mean divergence, the gain kept is (d of none - d of quick) / (d of none - d of full);
± is the standard error over windows, the ratio's by jackknife.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import CONFIG_NAME
from sol_rt.export import export_bundle
from sol_rt.export.parity import project
from sol_rt.export.sources.decoder import family_of, from_hf_config
from sol_rt.export.sources.open_checkpoint import open_checkpoint
from sol_rt.export.sources.source_model import SourceModel
from sol_rt.generate.native.engine import Engine
from sol_rt.progress import silent
from sol_rt.store.pull import resolve

SIZE = 512
SECONDS = "seconds.json"

Means = npt.NDArray[np.float64]
"""Mean divergence of each window, [windows]."""


class Source:
    """The source's float32 distribution on windows of a text."""

    def __init__(self, model: str, windows: Sequence[Sequence[int]]) -> None:
        self._checkpoint = open_checkpoint(resolve(model, silent)[0])
        self._family, self._decoder = family_of(self._checkpoint.config), from_hf_config(self._checkpoint.config)
        with torch.inference_mode():
            source = SourceModel(self._checkpoint, self._decoder, self._family, SIZE)
            x = torch.stack([source.embed(window) for window in windows])
            for layer in source.layers():
                x = source.run(layer, x)
            self._hidden = source.final_norm(x)[:, SIZE // 2 :]

    def logprobs(self, window: int) -> torch.Tensor:
        """float32 [SIZE / 2, vocab]."""
        logits = project(self._checkpoint, self._decoder, self._family, self._hidden[window])
        return torch.from_numpy(logits).log_softmax(-1)


def divergences(
    bundles: dict[str, Path], variants: Sequence[str], windows: Sequence[Sequence[int]], source: Source
) -> dict[tuple[str, str], Means]:
    """Mean divergences by (calibration, variant), nats per token."""
    engines = {name: Engine(Bundle.open(path), provider="cpu") for name, path in bundles.items()}
    found: dict[tuple[str, str], list[float]] = {(name, variant): [] for name in engines for variant in variants}
    for number, window in enumerate(windows):
        expected = source.logprobs(number)
        for name, engine in engines.items():
            engine.reset()
            engine.forward(window[: SIZE // 2], engine.bundle.config.dense)
            for variant in variants:
                engine.truncate(SIZE // 2)
                action = Action.parse(f"k100-{variant}")
                logits = engine.forward(window[SIZE // 2 :], action, num_logits=SIZE - SIZE // 2).logits
                got = torch.from_numpy(np.array(logits)).log_softmax(-1)
                found[name, variant].append(float((expected.exp() * (expected - got)).sum(-1).mean()))
    return {key: np.array(means) for key, means in found.items()}


def exported(model: str, calibration: str, folder: Path) -> dict[str, float]:
    """Exports unless the bundle is there; returns the seconds that it took, wall and processor."""
    record = folder.parent / f"{folder.name}-{SECONDS}"
    if not (folder / CONFIG_NAME).is_file():
        wall, processor = time.perf_counter(), time.process_time()
        export_bundle(model, folder, calibration=calibration)
        taken = {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}
        record.write_text(json.dumps(taken), encoding="utf-8")
    return json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}


def shared(bundles: Iterable[Path]) -> list[str]:
    """The variants that all bundles have."""
    known = [list(Bundle.open(path).config.variants) for path in bundles]
    return [variant for variant in known[0] if all(variant in others for others in known)]


def stderr(values: Means) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def kept(first: Means, middle: Means, last: Means) -> tuple[float, float]:
    """The share of the gain from `first` to `last` that `middle` has, and its standard error."""
    share = float((first - middle).sum() / (first - last).sum())
    count = len(first)
    without = [float(np.delete(first - middle, at).sum() / np.delete(first - last, at).sum()) for at in range(count)]
    return share, float(np.sqrt((count - 1) / count * ((np.array(without) - np.mean(without)) ** 2).sum()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("-f", "--file", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--calibrations", default="none,quick,full")
    parser.add_argument("--actions")
    parser.add_argument("--chunks", type=int, default=8)
    given = parser.parse_args()
    names = given.calibrations.split(",")
    given.output.mkdir(parents=True, exist_ok=True)
    bundles = {name: given.output / name for name in names}
    seconds = {name: exported(given.model, name, folder) for name, folder in bundles.items()}
    variants = shared(bundles.values()) if given.actions is None else given.actions.split(",")
    ids = Bundle.open(bundles[names[0]]).tokenizer().encode(given.file.read_text(encoding="utf-8"))
    starts = np.linspace(0, len(ids) - SIZE, given.chunks).astype(int)
    windows = [ids[start : start + SIZE] for start in starts]
    found = divergences(bundles, variants, windows, Source(given.model, windows))
    print(
        f"{Path(given.model).name} on {given.file.name}: {given.chunks} windows of {SIZE}, the second halves scored.\n"
    )
    print("| calibration | seconds | processor seconds |\n|---|--:|--:|")
    for name in names:
        cells = [f"{seconds[name][key]:.0f}" if seconds[name] else "" for key in ("wall", "processor")]
        print(f"| {name} | " + " | ".join(cells) + " |")
    print("\n| variant | " + " | ".join(names) + " | gain kept |\n|---|" + "--:|" * (len(names) + 1))
    for variant in variants:
        rows = [found[name, variant] for name in names]
        cells = [f"{row.mean():.4f} ± {stderr(row):.4f}" for row in rows]
        share = "{:.0%} ± {:.0%}".format(*kept(rows[0], rows[-2], rows[-1]))
        print(f"| `{variant}` | " + " | ".join([*cells, share]) + " |")


if __name__ == "__main__":
    main()
