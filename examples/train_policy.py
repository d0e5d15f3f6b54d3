"""A policy, trained for a minute on a text and given to the bundle, beside the schedule that needs none.

    python examples/train_policy.py smollm2-135m book.txt another-book.txt

The second text is held out: both schedules are scored on it, and neither has seen it. The bundle is changed: it has the
policy afterwards, and the schedule `sol` asks it. `sol-rt export -m smollm2-135m --policy none --force` makes a bundle
without one. A minute shows the way; a policy worth keeping takes hours (docs/design/policy-training.md). The commands
`sol-rt train` and `sol-rt export --policy` do the same, and `sol-rt eval` compares at equal cost.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from sol_rt import SolError, SolModel
from sol_rt.cli import main as sol_rt

BUDGET = 0.6
CONFIG = Path(__file__).with_suffix(".yaml")


def mean_loss(model: SolModel, tokens: list[int], schedule: str) -> float:
    """Nats a token over the second half of `tokens`, each scored by a decode step under the budget."""
    scores = model.score(tokens, context=len(tokens) // 2, budget=BUDGET, schedule=schedule)
    return -float(scores.logprobs.mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("text", type=Path, help="what the policy is trained on")
    parser.add_argument("held_out", type=Path, help="another text, to compare on")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--config", default=str(CONFIG), help="a YAML file, or the name of a shipped one")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        train = ["train", "-m", arguments.model, "--data", str(arguments.text), "-o", folder]
        if sol_rt([*train, "--config", arguments.config, "--minutes", str(arguments.minutes)]):
            raise SystemExit("the training failed")
        if sol_rt(["export", "-m", arguments.model, "--policy", f"{folder}/policy.safetensors"]):
            raise SystemExit("the bundle did not take the policy")

    model = SolModel.from_pretrained(arguments.model)
    tokens = model.tokenizer.encode(arguments.held_out.read_text(encoding="utf-8"))
    tokens = tokens[: min(512, model.engine.max_context)]
    # hull takes the actions that lost least when the export measured them, and so needs an export that did
    rival = "hull" if model.bundle.config.losses_measured else "uniform"
    for schedule in (rival, "sol"):
        print(f"{schedule} at budget {BUDGET}: {mean_loss(model, tokens, schedule):.3f} nats a token")


if __name__ == "__main__":
    try:
        main()
    except SolError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
