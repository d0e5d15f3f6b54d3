"""Measures whether cheaper steps still find a fact in a long context: a needle hidden in the text of books.

    python benchmarks quality.needle BUNDLE -f BOOK [-f BOOK …] -c 2048,4096,8000
    ... --kv-density 1,0.25,0.1  shares of the old tokens that attention reads, of the dense variant
    ... --budget 0.35,0.5        shares of the dense step's bytes, by --schedule (hull); with it --kv-density is 1 alone
    ... --depths 0.1,0.5,0.9     where the fact stands, 0 the beginning and 1 the end
    ... --trials 4               haystacks per book, context and depth

Prints a Markdown table with a row per context and setting: achieved share of the dense bytes, needles found, and their
share by depth. A haystack is a part of a book with one sentence in it, "The secret code of Lisbon is 48213."; town and
code are drawn anew each time.
The haystack is prefilled dense. Then the beginning of the sentence runs again, one decode step per token, and more
steps decode the answer greedily. The needle counts as found if all digits are right. Every step therefore has to find
the needle's page by its keys among the pages of a book. The question repeats the sentence's own words, because a model
of 135M parameters answers no other form.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sol_rt.budget.cost.model import BytesCost
from sol_rt.budget.dial import Dial
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.evaluation.quality.perplexity import added_bos
from sol_rt.generate.model import SolModel
from sol_rt.generate.native.decoder import Decoder
from sol_rt.store.home import find_bundle
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


def answers(model: SolModel, tokens: Sequence[int], needle: Needle, decoder: Decoder) -> bool:
    """True if greedy decoding after the question gives the code. `tokens` are the haystack's; they are prefilled dense,
    but for those that the cache already begins with.
    """
    tokenizer = model.tokenizer
    decoder.prefill(tokens, reuse=True)
    for token in tokenizer.encode(needle.question, add_special_tokens=False):
        decoder.step(token)
    told: list[int] = []
    for _ in range(2 * DIGITS):  # a token may be one digit, several digits, or a blank before them
        told.append(decoder.output.distribution.top)
        if len(tokenizer.decode(told).strip()) >= DIGITS:
            break
        decoder.step(told[-1])
    return tokenizer.decode(told).strip().startswith(needle.answer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="folder, or the name of an exported bundle")
    parser.add_argument("-f", "--file", type=Path, action="append", required=True, help="a book; may be repeated")
    parser.add_argument("-c", "--ctx-size", default="2048,4096,8000", help="tokens of a haystack")
    parser.add_argument("--kv-density", help="shares of the old tokens read, separated by commas; default: 1,0.25,0.1")
    parser.add_argument("-b", "--budget", default="", help="shares of the dense step's bytes, separated by commas")
    parser.add_argument("--schedule", default="hull", help="schedule of the budgets")
    parser.add_argument("--depths", default="0.1,0.3,0.5,0.7,0.9")
    parser.add_argument("--trials", type=int, default=1, help="haystacks per book, context and depth")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-t", "--threads", type=int)
    args = parser.parse_args()
    depths = sorted(map(float, args.depths.split(",")), reverse=True)
    bundle = Bundle.open(find_bundle(args.bundle))
    model = SolModel.from_pretrained(bundle, threads=args.threads, cost=BytesCost(bundle.config))
    dense, bos = bundle.config.dense, added_bos(model)
    densities = args.kv_density or ("1" if args.budget else "1,0.25,0.1")
    dials = {}
    for share in map(float, densities.split(",")):
        action = Action(share, dense.channel_density, dense.bits)
        dials[f"KV density {share:g}"] = Dial(schedule=f"fixed:{action.tag}")
    for budget in map(float, filter(None, args.budget.split(","))):
        dials[f"`{args.schedule}` at {budget:g}"] = Dial(budget, args.schedule, seed=args.seed)
    start = [] if bos is None else [bos]
    books = [model.tokenizer.encode(path.read_text(encoding="utf-8"), add_special_tokens=False) for path in args.file]
    rng = np.random.default_rng(args.seed)
    shown = " ".join(f"{depth:g}" for depth in depths)
    print(f"{model.bundle.config.model.name}, variant {dense.variant}: needles found, and their share by depth\n")
    print(f"| context | setting | achieved | found | {shown} |\n|--:|---|--:|--:|---|")
    for size in [int(size) for size in args.ctx_size.split(",")]:
        # trial by trial, in each depth by depth
        found: dict[str, list[bool]] = {name: [] for name in dials}
        decoders = {name: model.decoder(dial, model.session()) for name, dial in dials.items()}
        for book in books * args.trials:
            for tokens, needle in haystacks(book, size - len(start), depths, model.tokenizer, rng):
                for name, decoder in decoders.items():
                    found[name].append(answers(model, start + tokens, needle, decoder))
        for name, decoder in decoders.items():
            table = np.array(found[name]).reshape(-1, len(depths))
            by_depth = " ".join(f"{share:.2f}" for share in table.mean(0))
            achieved = f"{decoder.achieved:.3f}"
            print(f"| {size} | {name} | {achieved} | {table.sum()} of {table.size} | {by_depth} |", flush=True)


if __name__ == "__main__":
    main()
