"""Speed and perplexity of a bundle at several settings of the dial, all settings in turn.

    python benchmarks quality.dial smollm2-135m -f valid.tokens.txt --context 4096

Speed: steps of generation after a context, in rounds in which the settings take turns; costs are this machine's
milliseconds, measured for about a minute and for this run alone: a stored cost table stays. Perplexity: of the text's
tokens after contexts of that length, with the same costs; the context runs dense, as in generation.
"""

from __future__ import annotations

import argparse
import datetime
import math
import random
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from report import FOLDER, machine, quartiles, write_page
from sol_rt import SolModel
from sol_rt.budget.cost.cost_table import MeasuredCost
from sol_rt.budget.cost.profile import measure
from sol_rt.budget.losses import share_of_nats
from sol_rt.bundle.bundle import Bundle
from sol_rt.evaluation.quality.perplexity import text_windows
from sol_rt.generate.native.engine import Engine
from sol_rt.progress import silent
from sol_rt.store.home import find_bundle

import onnxruntime as ort

SETTINGS: tuple[tuple[str, dict[str, float]], ...] = (
    ("`--budget 1.0`, dense", {"budget": 1.0}),
    ("nothing: at most 0.5% loss", {}),
    ("`--max-loss 2%`", {"max_loss": 0.02}),
    ("`--max-loss 10%`", {"max_loss": 0.1}),
    ("`--budget 0.6`", {"budget": 0.6}),
    ("`--budget 0.5`", {"budget": 0.5}),
    ("`--budget 0.4`", {"budget": 0.4}),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("-f", "--file", type=Path, required=True, help="text to score")
    parser.add_argument("--context", type=int, default=512, help="tokens before the steps")
    parser.add_argument("--windows", type=int, default=20, help="windows of the text to score")
    parser.add_argument("--scored", type=int, default=256, help="tokens to score in each window, after the context")
    parser.add_argument("-n", "--count", type=int, default=64, help="decode steps per round")
    parser.add_argument("-r", "--rounds", type=int, default=7)
    parser.add_argument("-o", "--output", type=Path, help="page to write; default: build/results/dial-MODEL.md")
    arguments = parser.parse_args()

    bundle = Bundle.open(find_bundle(arguments.model))
    engine = Engine(bundle, provider="cpu")
    measured = measure(engine, bundle, (64, arguments.context, 2 * arguments.context), 15, silent, seconds=60)
    cost = MeasuredCost(bundle.config, measured.table)
    model = SolModel.from_pretrained(bundle, provider="cpu", cost=cost)

    size, text = arguments.context + arguments.scored, arguments.file.read_text(encoding="utf-8")
    windows = text_windows(text, model.tokenizer, bundle.config.model, size, arguments.windows)
    speeds = _speeds(model, arguments.context, arguments.count, arguments.rounds)
    rows: list[dict[str, Any]] = []
    for name, dial in SETTINGS:
        scores = [model.score(window, context=arguments.context, **_explicit(dial)) for window in windows]
        losses = -np.concatenate([each.logprobs[1:] for each in scores])  # the first is the prompt's prediction
        rise = losses - (rows[0]["losses"] if rows else losses)
        quality = {"losses": losses, "rise": rise.mean(), "rise_error": rise.std(ddof=1) / np.sqrt(rise.size)}
        rows.append({"setting": name, "dial": dial, **quality, **speeds[name]})
        print(name, math.exp(losses.mean()), quality["rise"], speeds[name], file=sys.stderr, flush=True)
    page = arguments.output or FOLDER / f"dial-{bundle.config.model.name}.md"
    write_page(page, _page(model, arguments, rows))


def _explicit(dial: dict[str, float]) -> dict[str, Any]:
    """The dial for scoring, whose default is dense."""
    return dial or {"max_loss": 0.005}


def _speeds(model: SolModel, context: int, count: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Tokens per second of each round, achieved budget and actions, by setting."""
    prompt = np.random.default_rng(0).integers(100, model.bundle.config.model.vocab_size - 100, context).tolist()
    found: dict[str, list[Any]] = {name: [] for name, _ in SETTINGS}
    for number in range(rounds + 1):  # the first round warms up
        for name, dial in random.sample(SETTINGS, len(SETTINGS)):
            result = model.generate(
                prompt, **dial, max_new_tokens=count + 1, eos_token_id=[], do_sample=False, reuse_cache=True
            )
            if number:
                found[name].append(result)
    dense = [result.tokens_per_second for result in found[SETTINGS[0][0]]]
    return {
        name: {
            "tokens_per_second": [result.tokens_per_second for result in results],
            "ratio": [result.tokens_per_second / full for result, full in zip(results, dense, strict=True)],
            "achieved": statistics.median(result.achieved_budget for result in results),
            "expected_loss": results[0].expected_loss,
            "actions": results[0].actions,
        }
        for name, results in found.items()
    }


def _page(model: SolModel, arguments: argparse.Namespace, rows: list[dict[str, Any]]) -> str:
    command = ["git", "rev-parse", "--short", "HEAD"] if shutil.which("git") else ["echo", "unknown"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False)
    name, dense = model.bundle.config.model.name, rows[0]
    lines = [
        f"# What the dial does to {name}",
        "",
        f"{datetime.date.today():%-d %B %Y}, commit `{commit.stdout.strip()}`, {machine()}, "
        f"{model.provider.threads} threads, onnxruntime {ort.__version__}, {model.bundle.config.kv.dtype} cache.",
        "",
        f"Speed: medians [quartiles] of {arguments.rounds} rounds of {arguments.count} steps, the settings in turn in "
        "one process after a warm-up; the ratio is to dense in",
        f"the same round. Perplexity: of {arguments.windows} windows of `{arguments.file.name}` the "
        f"{arguments.scored - 1} tokens after {arguments.context + 1}, {dense['losses'].size} in all; the rise over",
        "dense ± one standard error of paired losses. Expected: by the losses that the export measured.",
        "",
        f"Command: `python benchmarks quality.dial {name} -f {arguments.file.name} --context {arguments.context} "
        f"--windows {arguments.windows} --scored {arguments.scored} -n {arguments.count} -r {arguments.rounds}`",
        "",
        "| asked for | tokens/s | times dense | achieved budget | perplexity | over dense | expected |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        expected = "" if row["expected_loss"] is None else f"{share_of_nats(max(row['expected_loss'], 0.0)):.1%}"
        lines.append(
            f"| {row['setting']} | {quartiles(row['tokens_per_second'], 1)} | {quartiles(row['ratio'])} | "
            f"{row['achieved']:.2f} | {math.exp(row['losses'].mean()):.3f} | "
            f"{math.expm1(row['rise']):+.1%} ± {row['rise_error']:.1%} | {expected} |"
        )
    actions = [f"- {row['setting']}: {', '.join(f'{t} {c}' for t, c in row['actions'].items())}" for row in rows]
    return "\n".join([*lines, "", "Actions of a round:", "", *actions, ""])


if __name__ == "__main__":
    main()
