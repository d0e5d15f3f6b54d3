"""The dial: one prompt at three budgets, each a share of the cost of dense decode steps.

    python examples/generate.py smollm2-135m "Once upon a time"

MODEL is a bundle folder, or the name of a bundle that `sol-rt export` made.
"""

from __future__ import annotations

import argparse
import sys

from sol_rt import SolError, SolModel

BUDGETS = (1.0, 0.8, 0.6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("prompt", nargs="?", default="Once upon a time")
    parser.add_argument("-n", "--max-new-tokens", type=int, default=64)
    arguments = parser.parse_args()

    model = SolModel.from_pretrained(arguments.model)
    for budget in BUDGETS:
        print(f"--- budget {budget:.1f}: {arguments.prompt}", end="")
        stream = model.stream(arguments.prompt, budget=budget, max_new_tokens=arguments.max_new_tokens, do_sample=False)
        for step in stream:  # one step is one token
            print(step.text, end="", flush=True)
        result = stream.result
        assert result is not None  # the stream has ended
        print(f"\nachieved budget {result.achieved_budget:.3f}, {result.tokens_per_second:.1f} tokens/s")


if __name__ == "__main__":
    try:
        main()
    except SolError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
