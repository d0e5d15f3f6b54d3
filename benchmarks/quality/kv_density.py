"""Measures what reading only part of the KV cache loses at long contexts, on windows of several books.

    python benchmarks quality.kv_density BUNDLE -f BOOK [-f BOOK …] -c 4096,8000
    ... --kv-density 0.5,0.25,0.1  shares of the old tokens that attention reads
    ... --windows 2                windows per book, spread over its length
    ... --scored 512               tokens scored at the end of each window, instead of its second half

Prints a Markdown table with a row per context and KV density: loss over dense and time per step. As in `sol-rt
perplexity`, the first half of a window is prefilled dense, and every later token is a decode step of the action; later
steps read the keys and values that it writes. Losses are compared with the dense losses token by token. The standard
error of the mean difference treats windows as independent.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sol_rt.budget.cost.model import BytesCost
from sol_rt.bundle.actions import Action
from sol_rt.evaluation.quality.perplexity import added_bos
from sol_rt.generate.model import SolModel


def cut(book: Sequence[int], size: int, count: int) -> list[list[int]]:
    """Cuts `count` windows of `size` tokens at equal distances. Skips the book's beginning, its title and preface.

    Raises SystemExit where the book is too short for them.
    """
    if len(book) < size * (count + 1):
        raise SystemExit(
            f"kv_density.py: a book has {len(book)} tokens, {count} windows of {size} need {size * (count + 1)}; "
            "use a longer one or fewer --windows"
        )
    step = (len(book) - size) // count
    return [list(book[begin : begin + size]) for begin in range(step // 2, len(book) - size, step)][:count]


def losses(model: SolModel, window: Sequence[int], scored: int, actions: Sequence[Action]) -> tuple[np.ndarray, ...]:
    """Losses of a window's last `scored` tokens under each action, nats, float64 [A, scored], and ms per step [A]."""
    engine = model.engine
    context = len(window) - scored - 1
    engine.reset()
    dense = model.bundle.config.dense
    engine.forward(window[:context], dense)
    table, times = np.empty((len(actions), scored)), np.empty(len(actions))
    for row, action in enumerate(actions):
        engine.truncate(context - 1)
        engine.forward(window[context - 1 : context], dense)  # with all that the rewind left undone
        began = time.perf_counter()
        for column, (token, target) in enumerate(zip(window[context:], window[context + 1 :], strict=False)):
            table[row, column] = -engine.forward([token], action).distribution.log_probability(target)
        times[row] = 1e3 * (time.perf_counter() - began) / scored
    return table, times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="folder, or the name of an exported bundle")
    parser.add_argument("-f", "--file", type=Path, action="append", required=True, help="a book; may be repeated")
    parser.add_argument("-c", "--ctx-size", default="4096,8000", help="tokens per window")
    parser.add_argument(
        "--kv-density", default="0.5,0.25,0.1", help="shares of the old tokens read, separated by commas"
    )
    parser.add_argument("--windows", type=int, default=1, help="windows per book")
    parser.add_argument("--scored", type=int, help="tokens to score per window; default: its second half")
    parser.add_argument("-t", "--threads", type=int)
    parser.add_argument("--no-native-ops", action="store_true", help="run function bodies instead of native kernels")
    args = parser.parse_args()
    model = SolModel.from_pretrained(
        args.bundle, threads=args.threads, native_ops=not args.no_native_ops, measure_costs=False
    )
    config, bos = model.bundle.config, added_bos(model)
    actions = [
        Action(kv_density, config.dense.channel_density, config.dense.bits)
        for kv_density in map(float, args.kv_density.split(","))
    ]
    books = [model.tokenizer.encode(path.read_text(encoding="utf-8"), add_special_tokens=False) for path in args.file]
    print(f"{config.model.name}, {', '.join(path.stem for path in args.file)}; differences to {config.dense.tag}\n")
    print("| context | action | tokens read | perplexity | added, nats a token | added | ms a step |")
    print("|--:|---|--:|--:|--:|--:|--:|")
    for size in map(int, args.ctx_size.split(",")):
        scored = args.scored or size - size // 2 - 1
        windows = [window for book in books for window in cut(book, size, args.windows)]
        tables, times = [], []
        for window in windows:
            window[0] = window[0] if bos is None else bos
            table, ms = losses(model, window, scored, [config.dense, *actions])
            tables.append(table.mean(1))
            times.append(ms)
        means = np.array(tables)  # [windows, 1 + actions]
        for row, action in enumerate([config.dense, *actions]):
            difference = means[:, row] - means[:, 0]
            error = difference.std(ddof=1) / math.sqrt(len(windows)) if len(windows) > 1 else math.nan
            share = BytesCost(config).reads(action, size)[0] / (size + 1)
            print(
                f"| {size} | `{action.tag}` | {100 * share:.0f}% | {math.exp(means[:, row].mean()):.3f} | "
                f"{difference.mean():+.4f} ± {error:.4f} | {100 * math.expm1(difference.mean()):+.1f}% | "
                f"{np.median([ms[row] for ms in times]):.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
