"""Tokens per second of `--lossless` over dense steps, on ordinary text and where text repeats.

    python benchmarks speed.lossless -m smollm2-135m -n 200 -r 6

Prints a row per text: tokens per second of dense steps, the ratio of `--lossless` to them, the shares of tokens that
were drafted and of drafts that were kept, and the achieved budget. Modes and texts take turns, and a ratio compares two
runs of the same turn. Figures are medians over the turns, with quartiles. Stops where the two texts differ.

    ... --peer PYTHON --file smollm2-135m.gguf

With the python of an environment with xllamacpp, llama.cpp's server takes turns with its kinds of n-gram drafts, too.
A second table has the ratios of each to its plain steps, and the texts that are not those of plain steps.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from report import facts, machine, quartiles, rotated, write_page
from serve.load import started
from sol_rt.generate.model import SolModel
from sol_rt.generate.results import Generation

_CODE = '''\
class Account:
    """Money of one owner, in cents."""

    def __init__(self, owner: str, balance: int = 0) -> None:
        self.owner = owner
        self.balance = balance

    def deposit(self, amount: int) -> None:
        if amount <= 0:
            raise ValueError("amount must be positive")
        self.balance += amount

    def withdraw(self, amount: int) -> None:
        if amount <= 0:
            raise ValueError("amount must be positive")
        if amount > self.balance:
            raise ValueError("not enough money")
        self.balance -= amount
'''
_LETTER = """\
Order 48213 of 3 March. Anna Keller, 14 Mill Lane, Bath, anna.keller@example.com, ordered two oak shelves (OS-120)
at 89.50 each and one desk lamp (DL-7) at 34.00. Delivery to Bath is on 9 March between 10:00 and 12:00. She pays by
card on delivery.
Order 48214 of 3 March. Tom Reyes, 3 Harbour Road, Leith, tom.reyes@example.com, ordered one oak shelf (OS-120) at
89.50 and four folding chairs (FC-2) at 22.75 each. Delivery to Leith is on 11 March between 14:00 and 16:00. He has
paid by transfer.
"""
_REPORT = """\
The harbour board met on Tuesday. Its chair, Mary Holt, said: "The north pier will stay closed until the cracked
piles are replaced." Engineers found eleven cracked piles in May. The fishers' union asked for a berth at the south
quay. "We lose two tides a week," said its speaker, Dan Moss. The board agreed to open four berths by the first of
August. "That is the least we can do," Mary Holt said. The repair will cost 1.2 million and take nine months.
"""
TEXTS = {
    "story": "Tell me a story about a fox that lives in the mountains.",
    "explanation": "Explain why the sky is blue, and why it is red in the evening.",
    "code edit": f"Rename `amount` to `cents` in this code, and write out the whole class:\n```python\n{_CODE}```",
    "extraction": f"Write every name, address, e-mail, article and price in these orders as JSON:\n{_LETTER}",
    "summary with quotes": f"Summarize this report. Quote each speaker word by word:\n{_REPORT}",
}
"""Requests by what their answers are like: the first two are ordinary text, the others repeat the request."""
PEER_DRAFTS = ("", "ngram_simple", "ngram_mod", "ngram_cache", "ngram_map_k")
"""Drafts of llama.cpp that need no second model; the empty name is none."""
_SERVER = Path(__file__).parents[1] / "peers" / "workers" / "llama_cpp_server.py"
MODES: dict[str, dict[str, Any]] = {"dense": {"budget": 1.0}, "lossless": {"lossless": True}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", required=True, help="folder, or the name of an exported bundle")
    parser.add_argument("-n", "--count", type=int, default=200, help="tokens of each answer at most")
    parser.add_argument("-r", "--rounds", type=int, default=6)
    parser.add_argument("-t", "--threads", type=int)
    parser.add_argument("--temperature", type=float, default=0.0, help="0: greedy")
    parser.add_argument("-o", "--output", type=Path, help="file for every figure, as JSON")
    parser.add_argument("--peer", type=Path, help="python of an environment with xllamacpp")
    parser.add_argument("--file", help="the model's .gguf, for xllamacpp")
    args = parser.parse_args()
    model = SolModel.from_pretrained(args.model, threads=args.threads, provider="cpu")
    runs: dict[tuple[str, str], list[Generation]] = defaultdict(list)
    for number in range(args.rounds + 1):  # the first round is the warm-up
        for text in rotated(list(TEXTS), number):
            made = {mode: answer(model, text, mode, number, args) for mode in rotated(list(MODES), number)}
            if made["dense"].tokens != made["lossless"].tokens:
                sys.exit(f"error: {text}: the text of --lossless is not the dense one in round {number}")
            if number:
                for mode, result in made.items():
                    runs[text, mode].append(result)
    print(f"{machine()}, {model.provider.threads} threads; {args.model}, {args.count} tokens at most, temperature "
          f"{args.temperature:g}, {args.rounds} rounds\n")  # fmt: skip
    print(
        "| text | dense tokens/s | lossless over dense | drafted | kept | achieved budget |\n|:--|--:|--:|--:|--:|--:|"
    )
    for text in TEXTS:
        print(f"| {text} | {row(runs[text, 'dense'], runs[text, 'lossless'])} |")
    if args.peer is not None:
        print("\n" + peer_table(args))
    if args.output is not None:
        figures = [
            {"text": text, "mode": mode, "runs": list(map(figures_of, made))} for (text, mode), made in runs.items()
        ]
        document = facts("sol_rt.lossless", args.model, None, model.provider.threads) | {"results": figures}
        write_page(args.output, json.dumps(document, indent=1) + "\n")


def peer_table(args: argparse.Namespace) -> str:
    """llama.cpp's tokens per second by plain steps, and the ratios of its drafts to them."""
    found: dict[tuple[str, str], list[tuple[float, str]]] = defaultdict(list)
    with ExitStack() as stack:
        addresses = {}
        for kind in PEER_DRAFTS:
            command = [str(args.peer), str(_SERVER), args.file, "--slots", "1", *(("--drafts", kind) if kind else ())]
            addresses[kind] = stack.enter_context(started(command))[0]
        for number in range(args.rounds + 1):
            for text in rotated(list(TEXTS), number):
                for kind in rotated(list(PEER_DRAFTS), number):
                    body = {
                        "messages": [{"role": "user", "content": TEXTS[text]}],
                        "max_tokens": args.count,
                        "temperature": args.temperature,
                        "cache_prompt": False,
                    }
                    said = (
                        httpx.post(f"{addresses[kind]}/chat/completions", json=body, timeout=600)
                        .raise_for_status()
                        .json()
                    )
                    if number:
                        made = said["choices"][0]["message"]["content"]
                        found[text, kind].append((said["timings"]["predicted_per_second"], made))
    kinds = PEER_DRAFTS[1:]
    lines = [f"| text | llama.cpp, tokens/s | {' | '.join(kinds)} |", "|:--|--:|" + "--:|" * len(kinds)]
    for text in TEXTS:
        plain, cells = found[text, ""], []
        for kind in kinds:
            ratios = [one / other for (one, _), (other, _) in zip(found[text, kind], plain, strict=True)]
            differ = sum(one != other for (_, one), (_, other) in zip(found[text, kind], plain, strict=True))
            cells.append(quartiles(ratios) + (f", {differ} texts differ" if differ else ""))
        lines.append(f"| {text} | {quartiles([rate for rate, _ in plain], 1)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def answer(model: SolModel, text: str, mode: str, number: int, args: argparse.Namespace) -> Generation:
    """One answer from an empty cache. A round has a seed of its own, and its two modes the same one."""
    sampling = {"do_sample": args.temperature > 0, "temperature": args.temperature or 1.0, "seed": number}
    chat = [{"role": "user", "content": TEXTS[text]}]
    return model.generate(chat, max_new_tokens=args.count, reuse_cache=False, **sampling, **MODES[mode])


def row(dense: list[Generation], lossless: list[Generation]) -> str:
    """The figures of a text, as cells of a table."""
    ratios = [one.tokens_per_second / other.tokens_per_second for one, other in zip(lossless, dense, strict=True)]
    drafted, kept = (
        sum(getattr(result, name) for result in lossless) for name in ("drafted_tokens", "accepted_tokens")
    )
    return " | ".join((
        quartiles([result.tokens_per_second for result in dense], 1),
        quartiles(ratios),
        f"{drafted / sum(len(result.tokens) - 1 for result in lossless):.0%}",
        f"{kept / drafted:.0%}" if drafted else "-",
        f"{np.median([result.achieved_budget for result in lossless]):.3f}",
    ))  # fmt: skip


def figures_of(result: Generation) -> dict[str, float]:
    """Figures by which a run is remembered."""
    return {
        "tokens": len(result.tokens),
        "tokens_per_second": result.tokens_per_second,
        "drafted_tokens": result.drafted_tokens,
        "accepted_tokens": result.accepted_tokens,
        "achieved_budget": result.achieved_budget,
    }


if __name__ == "__main__":
    main()
