"""A schedule of your own: dense where a sentence begins, the cheapest action that keeps the budget elsewhere.

    python examples/own_schedule.py smollm2-135m "Once upon a time" --budget 0.6

A schedule picks the action of every decode step. The controller of the run has the actions, knows what each costs at
this context, and tells which of them keep the budget.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

from sol_rt import Action, Controller, PolicyInput, SolError, SolModel


class SentenceStart:
    """Dense for the first token of a sentence, as far as the budget allows."""

    name = "sentence-start"

    def __init__(self, model: SolModel, controller: Controller) -> None:
        self._tokenizer = model.tokenizer
        self._controller = controller
        self._dense = controller.actions.index(controller.dense)

    def choose(self, step: PolicyInput) -> Action:
        """The action that processes `step.token` and so predicts the token after it."""
        controller = self._controller
        ends = self._tokenizer.decode([step.token]).rstrip().endswith((".", "!", "?"))
        if ends and controller.allows(self._dense, step.context):
            return controller.dense
        allowed = controller.allowed(step.context)  # bool, one for each action
        costs = controller.relative_costs(step.context)  # float64, in dense steps
        return controller.actions[int(np.argmin(np.where(allowed, costs, np.inf)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("prompt", nargs="?", default="Once upon a time")
    parser.add_argument("-b", "--budget", type=float, default=0.6)
    parser.add_argument("-n", "--max-new-tokens", type=int, default=64)
    arguments = parser.parse_args()

    model = SolModel.from_pretrained(arguments.model)
    result = model.generate(
        arguments.prompt,
        budget=arguments.budget,
        schedule=lambda controller: SentenceStart(model, controller),
        max_new_tokens=arguments.max_new_tokens,
        do_sample=False,
    )
    print(arguments.prompt + result.text)
    print(f"schedule {result.schedule}, budget {arguments.budget}, achieved {result.achieved_budget:.3f}")
    for tag, steps in sorted(result.actions.items()):
        print(f"  {tag}: {steps} steps")


if __name__ == "__main__":
    try:
        main()
    except SolError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
