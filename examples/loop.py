"""The decode loop, written out: choose an action, run it, sample a token.

    python examples/loop.py smollm2-135m "Once upon a time"

`SolModel.generate` does this in the core, with a budget that holds. Here every fourth step is at full quality, the
others take the cheapest action that the export kept.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

from sol_rt import SolError, SolModel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("prompt", nargs="?", default="Once upon a time")
    parser.add_argument("-n", "--max-new-tokens", type=int, default=64)
    arguments = parser.parse_args()

    model = SolModel.from_pretrained(arguments.model)
    config, cache, random = model.bundle.config, model.engine, np.random.default_rng(0)
    actions = [entry.action for entry in config.actions]
    cheap = min(actions, key=lambda action: model.cost.step(action, 512))

    tokens = model.tokenizer.encode(arguments.prompt)
    text = model.tokenizer.stream(tokens)  # turns tokens into text
    print(arguments.prompt, end="")
    output = cache.forward(tokens, config.dense)  # the prompt
    for step in range(arguments.max_new_tokens):
        logits = output.logits[-1].astype(np.float64) / 0.8  # float32 [vocab]; a temperature of 0.8
        weights = np.exp(logits - logits.max())
        token = int(random.choice(len(weights), p=weights / weights.sum()))  # sample
        if token in config.model.eos_token_ids or cache.length == cache.max_context:
            break
        print(text.add(token), end="", flush=True)
        action = config.dense if step % 4 == 0 else cheap  # choose
        output = cache.forward([token], action)  # run
    print(text.flush())


if __name__ == "__main__":
    try:
        main()
    except SolError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
