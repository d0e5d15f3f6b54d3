"""Compares the text of `--lossless` with that of dense steps, token for token, on many prompts in every mode.

    python benchmarks quality.lossless_texts smollm2-135m -f novel.txt -f program.js

Prompts are pieces of the texts, spread evenly. Tokens, log-probabilities and the reason to stop have to be equal. Stops
with an error at the first difference.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from quality.promise import spread_windows
from sol_rt import SolModel
from sol_rt.store.home import find_bundle

_SAMPLED: dict[str, Any] = {"do_sample": True, "temperature": 0.7}
MODES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampled": _SAMPLED,
    "top p": {**_SAMPLED, "temperature": 1.0, "top_p": 0.9},
    "penalties": {**_SAMPLED, "repetition_penalty": 1.1, "presence_penalty": 0.2},
    "bias": {"do_sample": False, "logit_bias": {11: 2.0, 13: -100.0}},
    "stop strings": {"do_sample": False, "stop_strings": ["the", "}"]},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("-f", "--file", type=Path, action="append", required=True, help="text; several are allowed")
    parser.add_argument("--prompts", type=int, default=200, help="in each mode")
    parser.add_argument("--size", type=int, default=96, help="tokens of a prompt")
    parser.add_argument("-n", "--count", type=int, default=48, help="tokens of an answer at most")
    parser.add_argument("-t", "--threads", type=int)
    given = parser.parse_args()

    model = SolModel.from_pretrained(find_bundle(given.model), provider="cpu", threads=given.threads)
    of_each = -(-given.prompts // len(given.file))
    prompts = [
        window for path in given.file for window in spread_windows(model.bundle, path, of_each, given.size)
    ][: given.prompts]  # fmt: skip
    print("| mode | prompts | equal | tokens | drafted | kept |\n|---|--:|--:|--:|--:|--:|", flush=True)
    for mode, settings in MODES.items():
        tokens = drafted = kept = 0
        for seed, prompt in enumerate(prompts):
            asked = {"max_new_tokens": given.count, "seed": seed, "reuse_cache": False, **settings}
            dense, got = model.generate(prompt, budget=1.0, **asked), model.generate(prompt, lossless=True, **asked)
            if (got.tokens, got.logprobs, got.finish_reason) != (dense.tokens, dense.logprobs, dense.finish_reason):
                sys.exit(f"error: {mode}, prompt {seed}: got {got.text!r}, expected the dense text {dense.text!r}")
            tokens, drafted, kept = tokens + len(got.tokens), drafted + got.drafted_tokens, kept + got.accepted_tokens
        print(f"| {mode} | {len(prompts)} | {len(prompts)} | {tokens} | {drafted} | {kept} |", flush=True)


if __name__ == "__main__":
    main()
