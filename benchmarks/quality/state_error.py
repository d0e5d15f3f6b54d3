"""Measures what cheap steps do to the tokens that follow them, in models with layers that have a short convolution.

    python benchmarks quality.state_error BUNDLE [-f TEXT]
    ... --context 256     tokens that run dense first
    ... --steps 1024      tokens after them

Prints a Markdown table with a row per action: the divergence of the next token from that of a run of dense steps, KL
in nats, 1, 16 and 256 dense steps after 16 steps of the action.

Without a text the tokens are random ids.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.engine.distribution import Reference
from sol_rt.generate.native.engine import Engine

_CHEAP = 16
_LATER = (1, 16, 256)


def divergences(engine: Engine, context: int, tokens: Sequence[int], action: Action) -> list[float]:
    """KL of the next token, dense steps after steps of the action, for each of _LATER that the tokens reach."""
    dense = engine.bundle.config.dense
    at = [_CHEAP + later for later in _LATER if _CHEAP + later <= len(tokens) - context]
    few = tokens[: context + at[-1]]
    references = {}
    engine.truncate(context)
    for index, token in enumerate(few[context:], 1):
        output = engine.forward([token], dense)
        if index in at:
            references[index] = Reference(output.distribution, np.float64)
    engine.truncate(context)
    found = []
    for index, token in enumerate(few[context:], 1):
        output = engine.forward([token], action if index <= _CHEAP else dense)
        if index in at:
            found.append(references[index].divergence(output.distribution))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="folder of a bundle")
    parser.add_argument("-f", "--file", type=Path, help="a text")
    parser.add_argument("--context", type=int, default=256, help="tokens that run dense first")
    parser.add_argument("--steps", type=int, default=1024, help="tokens after them")
    parser.add_argument("-t", "--threads", type=int)
    args = parser.parse_args()
    bundle = Bundle.open(args.bundle)
    config, count = bundle.config, args.context + args.steps
    if not config.kv.convolving:
        raise SystemExit(f"state_error.py: {args.bundle}: all layers attend, expected some with a short convolution")
    if args.file is not None:
        tokens = bundle.tokenizer().encode(args.file.read_text(encoding="utf-8"))[:count]
    else:
        tokens = np.random.default_rng(0).integers(0, config.model.vocab_size, count).tolist()
    engine = Engine(bundle, provider="cpu", threads=args.threads)
    if len(tokens) < count or count > engine.max_context or args.steps <= _CHEAP:
        raise SystemExit(
            f"state_error.py: got {len(tokens)} tokens and a context of {engine.max_context}, expected {count} of "
            f"both; use other --context and --steps, the latter above {_CHEAP}"
        )
    engine.forward(tokens[: args.context], config.dense)
    others = [entry.action for entry in config.actions if entry.action != config.dense]
    reached = [later for later in _LATER if _CHEAP + later <= args.steps]
    print(f"| action | {' | '.join(f'KL after {later}' for later in reached)} |\n|---|{'--:|' * len(reached)}")
    for action in others:
        cells = [f"{kl:.5f}" for kl in divergences(engine, args.context, tokens, action)]
        print(f"| `{action.tag}` | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
