"""Measures whether sparse attention still finds a fact in a long context: a needle hidden in the text of books.

    python benchmarks/needle.py BUNDLE -f BOOK [-f BOOK …] -c 2048,4096,8000
    ... --kv-density 1,0.25,0.1  shares of the old tokens that attention reads
    ... --depths 0.1,0.5,0.9     where the fact stands, 0 the beginning and 1 the end
    ... --trials 4               haystacks per book, context and depth

Prints a Markdown table with a row per context and KV density: needles found, and their share by depth. A haystack is a
part of a book with one sentence in it, "The secret code of Lisbon is 48213."; town and code are drawn anew each time.
The haystack is prefilled dense. Then the beginning of the sentence runs again, one decode step of the action per
token, and the action decodes the answer greedily. The needle counts as found if all digits are right. Every step
therefore has to find the needle's page by its keys among the pages of a book. The question repeats the sentence's own
words, because a model of 135M parameters answers no other form.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sol_rt.bundle.actions import Action
from sol_rt.evaluation.quality.perplexity import added_bos
from sol_rt.generate.model import SolModel
from sol_rt.text.tokenizer import Tokenizer

TOWNS = ("Lisbon", "Vienna", "Cairo", "Dublin", "Athens", "Madrid", "Moscow", "Berlin", "Oslo")
DIGITS = 5


@dataclass(frozen=True)
class Needle:
    """A fact in one sentence: `question` is the sentence's beginning, `answer` the digits that follow."""

    question: str
    answer: str

    @classmethod
    def random(cls, rng: np.random.Generator) -> Needle:
        code = "".join(map(str, rng.integers(0, 10, DIGITS)))
        return cls(f"\nThe secret code of {rng.choice(TOWNS)} is", code)

    @property
    def sentence(self) -> str:
        return f"{self.question} {self.answer}.\n"


def haystacks(
    book: Sequence[int], size: int, depths: Sequence[float], tokenizer: Tokenizer, rng: np.random.Generator
) -> Iterator[tuple[list[int], Needle]]:
    """Yields `size` tokens, and the needle in them, for every depth, all from the same part of the book.

    The deepest needle comes first, so that each haystack shares the longest possible beginning with the previous one.

    Raises SystemExit if the book is shorter than a haystack.
    """
    if len(book) < size:
        raise SystemExit(
            f"needle.py: a book has {len(book)} tokens, a context of {size} needs as many; use a longer one"
        )
    begin = int(rng.integers(0, len(book) - size + 1))
    for depth in sorted(depths, reverse=True):
        needle = Needle.random(rng)
        planted = tokenizer.encode(needle.sentence, add_special_tokens=False)
        text = book[begin : begin + size - len(planted)]
        place = round(depth * len(text))
        yield [*text[:place], *planted, *text[place:]], needle


def prefill(model: SolModel, tokens: Sequence[int]) -> None:
    """Fills the cache with `tokens`, dense. Tokens that the cache already starts with stay."""
    engine = model.engine
    held = engine.tokens
    pairs = zip(held, tokens, strict=False)
    shared = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(held), len(tokens)))
    engine.truncate(shared)
    if shared < len(tokens):
        engine.forward(tokens[shared:], model.bundle.config.dense)


def answers(model: SolModel, needle: Needle, action: Action) -> bool:
    """True if greedy decoding after the question gives the code. Restores the cache afterwards."""
    engine, tokenizer = model.engine, model.tokenizer
    length = engine.length
    for token in tokenizer.encode(needle.question, add_special_tokens=False):
        output = engine.forward([token], action)
    told: list[int] = []
    for _ in range(2 * DIGITS):  # a token may be one digit, several digits, or a blank before them
        told.append(int(output.logits[-1].argmax()))
        if len(tokenizer.decode(told).strip()) >= DIGITS:
            break
        output = engine.forward([told[-1]], action)
    engine.truncate(length)
    return tokenizer.decode(told).strip().startswith(needle.answer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="folder, or the name of an exported bundle")
    parser.add_argument("-f", "--file", type=Path, action="append", required=True, help="a book; may be repeated")
    parser.add_argument("-c", "--ctx-size", default="2048,4096,8000", help="tokens of a haystack")
    parser.add_argument("--kv-density", default="1,0.25,0.1", help="shares of the old tokens read, separated by commas")
    parser.add_argument("--depths", default="0.1,0.3,0.5,0.7,0.9")
    parser.add_argument("--trials", type=int, default=1, help="haystacks per book, context and depth")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-t", "--threads", type=int)
    args = parser.parse_args()
    kv_densities = [float(share) for share in args.kv_density.split(",")]
    depths = sorted(map(float, args.depths.split(",")), reverse=True)
    model = SolModel.from_pretrained(args.bundle, threads=args.threads, measure_costs=False)
    dense, bos = model.bundle.config.dense, added_bos(model)
    start = [] if bos is None else [bos]
    books = [model.tokenizer.encode(path.read_text(encoding="utf-8"), add_special_tokens=False) for path in args.file]
    rng = np.random.default_rng(args.seed)
    shown = " ".join(f"{depth:g}" for depth in depths)
    print(f"{model.bundle.config.model.name}, variant {dense.variant}: needles found, and their share by depth\n")
    print(f"| context | KV density | found | {shown} |\n|--:|--:|--:|---|")
    for size in [int(size) for size in args.ctx_size.split(",")]:
        # trial by trial, in each depth by depth
        found: dict[float, list[bool]] = {kv_density: [] for kv_density in kv_densities}
        for book in books * args.trials:
            for tokens, needle in haystacks(book, size - len(start), depths, model.tokenizer, rng):
                prefill(model, start + tokens)
                for kv_density in kv_densities:
                    found[kv_density].append(
                        answers(model, needle, Action(kv_density, dense.channel_density, dense.bits))
                    )
        for kv_density in kv_densities:
            table = np.array(found[kv_density]).reshape(-1, len(depths))
            by_depth = " ".join(f"{share:.2f}" for share in table.mean(0))
            print(f"| {size} | {kv_density:g} | {table.sum()} of {table.size} | {by_depth} |", flush=True)


if __name__ == "__main__":
    main()
