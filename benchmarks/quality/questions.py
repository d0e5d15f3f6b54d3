"""Asks a bundle ten ordinary questions at several settings of the dial, and writes the answers as they came.

    python benchmarks quality.questions smollm2-135m

The chat template, the model's own sampling settings with a repetition penalty, one seed. Nothing is chosen or left out.
Budgets are shares of the dense step's bytes, so that every machine asks for the same mixes; those of a user are shares
of measured time.
"""

from __future__ import annotations

import argparse
import datetime
import subprocess
import sys
import warnings
from pathlib import Path

from report import FOLDER, machine, write_page
from sol_rt import Generation, QualityWarning, SolModel
from sol_rt.budget.cost.model import BytesCost
from sol_rt.budget.losses import share_of_nats
from sol_rt.bundle.bundle import Bundle
from sol_rt.store.home import find_bundle

import onnxruntime as ort

QUESTIONS = (
    "What is the capital of Italy?",
    "Why is the sky blue?",
    "How many legs does a spider have?",
    "What is 12 times 7?",
    "Write a short poem about autumn.",
    "Give me three tips for better sleep.",
    "What is photosynthesis?",
    "Translate 'good morning' into French.",
    "Who wrote Romeo and Juliet?",
    "Write a Python function that reverses a string.",
)
BUDGETS = (None, 0.6, 0.5, 0.4)
"""Budgets to ask at; None gives no dial, so that the default applies."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("-n", "--max-new-tokens", type=int, default=80)
    parser.add_argument("--repetition-penalty", type=float, default=1.1)
    parser.add_argument("-o", "--output", type=Path, help="page to write; default: build/results/questions-MODEL.md")
    arguments = parser.parse_args()
    bundle = Bundle.open(find_bundle(arguments.model))
    model = SolModel.from_pretrained(bundle, provider="cpu", cost=BytesCost(bundle.config))
    warnings.simplefilter("ignore", QualityWarning)
    settings = {
        "max_new_tokens": arguments.max_new_tokens,
        "repetition_penalty": arguments.repetition_penalty,
        "seed": 0,
    }
    lines = _head(model, arguments)
    for question in QUESTIONS:
        lines += [f"## {question}", ""]
        for budget in BUDGETS:
            messages = [{"role": "user", "content": question}]
            result = model.generate(messages, budget=budget, reuse_cache=False, **settings)
            lines += [_facts(budget, result), "", *_quoted(result), ""]
            print(question, budget, result.text[:60].replace("\n", " "), file=sys.stderr)
    page = arguments.output or FOLDER / f"questions-{bundle.config.model.name}.md"
    write_page(page, "\n".join(lines).rstrip("\n") + "\n")


def _head(model: SolModel, arguments: argparse.Namespace) -> list[str]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    name = model.bundle.config.model.name
    return [
        f"# Ten questions to {name}",
        "",
        f"{datetime.date.today():%-d %B %Y}, commit `{commit.stdout.strip()}`, {machine()}, onnxruntime "
        f"{ort.__version__}. Every answer as it came, cut at {arguments.max_new_tokens} tokens; the model's own",
        f"sampling settings, repetition penalty {arguments.repetition_penalty:g}, seed 0. Budgets are shares of the "
        "dense step's bytes, so that every machine gives these answers.",
        "",
        f"Command: `python benchmarks quality.questions {name}`",
        "",
    ]


def _facts(budget: float | None, result: Generation) -> str:
    loss = result.expected_loss
    told = "" if loss is None else f", expected perplexity {100 * share_of_nats(max(loss, 0.0)):.1f}% over dense"
    asked = "default" if budget is None else f"budget {budget:g}"
    return f"**{asked}** ({result.schedule}, {result.achieved_budget:.2f} of the dense cost{told})"


def _quoted(result: Generation) -> list[str]:
    text = result.text.strip() or "(nothing)"
    end = " …" if result.finish_reason == "length" else ""
    return [f"> {line}".rstrip() for line in _wrapped(text + end)]


def _wrapped(text: str) -> list[str]:
    """The text's lines, none longer than 150 columns. Spaces at the start of a line stay."""
    lines = []
    for line in text.split("\n"):
        while len(line) > 150:
            cut = line.rfind(" ", 1, 150)
            cut = cut if cut > 0 else 150
            lines.append(line[:cut])
            line = line[cut:].lstrip(" ")
        lines.append(line)
    return lines


if __name__ == "__main__":
    main()
