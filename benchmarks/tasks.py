"""Asks a bundle held-out tasks at several budgets and schedules, each answer paired with the dense one.

    python benchmarks/tasks.py BUNDLE --tasks gsm8k --gsm8k train.jsonl --shots 4 --questions 200 --state tasks.jsonl
    ... --tasks mmlu,mmlu-letter --mmlu FOLDER --shots 0,5   choices by log-probability, without and with examples
    ... --tasks continuation -f BOOK                         what follows in a text: one of four pieces of it
    ... --tasks retrieval -f BOOK -c 2048                    a number hidden in a long context
    ... -b 0.35,0.4,0.5,0.6 --schedules dense,hull,static    what to compare; `sol` only if the bundle has a policy
    ... --report                                             only print what the state file holds

Prints Markdown: a row for each task and schedule with accuracy, difference from dense in points with its 95% interval,
and achieved cost at each budget; then the difference of each other schedule from `hull`. Budgets are shares of the
dense step's bytes, so the figures do not depend on the machine's speed. Prompts are prefilled dense; the steps that
answer run under the schedule.

A question is asked under every setting before the next one. A few questions, a span, share an account of the budget,
and the bootstrap draws spans.
The state file gets the answers at the end of each span, and a stopped run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from tasks_asked import Answer, Task
from tasks_continuation import Continuation
from tasks_exam import Mmlu, OneStepEngine
from tasks_gsm8k import Gsm8k
from tasks_retrieval import Retrieval
from tasks_table import Row, beside_hull, row_of, table, verdicts

from sol_rt.budget.cost.bytes_model import BytesCost
from sol_rt.budget.dial import Dial
from sol_rt.bundle.bundle import Bundle
from sol_rt.errors import SolError, UsageError
from sol_rt.evaluation.quality.held_out import state_settings
from sol_rt.evaluation.quality.runs import DENSE, Setting
from sol_rt.evaluation.quality.state import State
from sol_rt.generate.model import SolModel
from sol_rt.store.home import find_bundle

TASKS = ("mmlu", "mmlu-letter", "gsm8k", "continuation", "retrieval")
SCHEDULES = ("dense", "hull", "uniform", "random", "static", "sol")
BUDGETS = (0.35, 0.4, 0.5, 0.6)


def settings_of(model: SolModel, schedules: Sequence[str], budgets: Sequence[float]) -> list[Setting]:
    """Dense, then every other schedule at every budget.

    Raises UsageError for an unknown schedule, and for one that the bundle cannot run.
    """
    config = model.bundle.config
    for name in schedules:
        if name not in SCHEDULES:
            raise UsageError(f"--schedules: got {name!r}, expected some of {', '.join(SCHEDULES)}")
        if name == "sol" and config.policy is None:
            raise UsageError("--schedules sol: this bundle has no policy; leave it out, or train one")
        if name in ("hull", "static") and not config.losses_measured:
            raise UsageError(
                f"--schedules {name}: this bundle's losses were not measured; leave it out, or export again"
            )
    for budget in budgets:
        if not 0 < budget < 1:
            raise UsageError(f"-b: got {budget:g}, expected shares of the dense step's bytes over 0 and under 1")
    return [DENSE, *(Setting(name, budget) for name in schedules if name != "dense" for budget in budgets)]


def dial_of(model: SolModel, setting: Setting, context: int, start: int) -> Dial:
    """The dial of a setting for a span of questions that begins with number `start`."""
    if setting == DENSE:
        return Dial(1.0, "dense")
    assert setting.budget is not None
    if setting.schedule == "static":
        return Dial(1.0, f"fixed:{static_tag(model, setting.budget, context)}")
    return Dial(setting.budget, setting.schedule, seed=start if setting.schedule == "random" else None)


def static_tag(model: SolModel, budget: float, context: int) -> str:
    """The action that loses least of those whose cost is within the budget; the cheapest if none is."""
    cost = model.cost
    actions = {
        entry.action: cost.step(entry.action, context) / cost.dense(context) for entry in model.bundle.config.actions
    }
    within = [action for action, share in actions.items() if share <= budget and action in model.losses.measured]
    if not within:
        return min(actions, key=actions.__getitem__).tag
    return min(within, key=lambda action: (model.losses.at(action, context), actions[action])).tag


def run(
    model: SolModel, task: Task, settings: Sequence[Setting], state: State, progress: Callable[[int, int], None]
) -> None:
    """Asks every question under the settings that have no stored answer yet."""
    for start in range(0, len(task), task.span):
        span = range(start, min(start + task.span, len(task)))
        names = [task.key(index) for index in span]
        keys = {setting: [key_of(model, name, setting) for name in names] for setting in settings}
        missing = [setting for setting in settings if any(state.get(key) is None for key in keys[setting])]
        if missing:
            decoders = {setting: model.decoder(dial_of(model, setting, task.context, start))[1] for setting in missing}
            found: dict[str, Answer] = {}
            # how much of a prompt is cached decides how it is prefilled, and so its rounding: every span starts alike
            model.engine.owner = None
            model.engine.reset()
            for place, index in enumerate(span):
                task.open(index)
                for setting, decoder in decoders.items():
                    found[keys[setting][place]] = task.ask(decoder)
            for key, answer in found.items():
                state.put(key, asdict(answer))
        progress(span.stop, len(task))


def key_of(model: SolModel, question: str, setting: Setting) -> str:
    """The name under which the state holds the answer to the question of this key."""
    config = model.bundle.config
    policy = config.files[config.policy.file].sha256[:16] if setting.schedule == "sol" and config.policy else ""
    return f"{question} {setting.key} {policy}".strip()


def report(
    model: SolModel, tasks: Sequence[Task], schedules: Sequence[str], budgets: Sequence[float], state: State
) -> str:
    """Report of the state: a table, the budgets that keep each task within one point of dense, and who beats `hull`."""
    rows: list[Row] = []
    duels: list[list[Row]] = []
    for task in tasks:
        names = [task.key(index) for index in range(len(task))]

        def answers(setting: Setting, names: Sequence[str] = names) -> dict[int, Answer]:
            stored = enumerate(state.get(key_of(model, name, setting)) for name in names)
            return {index: Answer(**found) for index, found in stored if found is not None}

        dense = answers(DENSE)
        found = {
            name: {budget: answers(Setting(name, budget)) for budget in budgets}
            for name in schedules
            if name != "dense"
        }
        for name, by_budget in found.items():
            row = row_of(task.name, name, dense, by_budget, task.span)
            rows += [row] if row else []
            if name != "hull" and "hull" in found:
                pairs = [
                    row_of(task.name, name, found["hull"][each], {each: by_budget[each]}, task.span) for each in budgets
                ]
                duel = [pair for pair in pairs if pair]
                duels += [duel] if duel else []
    if not rows:
        return "No question has an answer of dense and of another schedule yet."
    parts = [table(rows, budgets), verdicts(rows)]
    if duels:
        parts.append(beside_hull(duels))
    return "\n\n".join(parts)


def tasks_of(model: SolModel, args: argparse.Namespace) -> list[Task]:
    """The tasks that the options name. Raises UsageError for an unknown one, and for one whose data are missing."""
    data = {"mmlu": args.mmlu, "mmlu-letter": args.mmlu, "gsm8k": args.gsm8k}
    tasks: list[Task] = []
    for name in args.tasks.split(","):
        if name not in TASKS:
            raise UsageError(f"--tasks: got {name!r}, expected some of {', '.join(TASKS)}")
        if not data.get(name, args.file):
            option = "--gsm8k FILE" if name == "gsm8k" else "--mmlu FOLDER" if name in data else "-f FILE"
            raise UsageError(f"--tasks {name}: got no data, expected {option}")
        if name == "gsm8k":
            shots = whole_numbers("--shots", args.shots)
            tasks += [Gsm8k(model, args.gsm8k, args.questions, args.seed, each) for each in shots]
        elif name == "continuation":
            tasks.append(Continuation(model, args.file, args.questions, args.seed))
        elif name == "retrieval":
            sizes = whole_numbers("-c", args.ctx_size)
            tasks += [Retrieval(model, args.file, size, args.questions, args.seed) for size in sizes]
        else:
            form = "letter" if name == "mmlu-letter" else "continuation"
            shots = whole_numbers("--shots", args.shots)
            tasks += [Mmlu(model, args.mmlu, args.questions, form, each) for each in shots]
    return tasks


def whole_numbers(option: str, text: str) -> list[int]:
    """Numbers separated by commas. Raises UsageError for anything else."""
    try:
        return [int(each) for each in text.split(",")]
    except ValueError:
        raise UsageError(f"{option}: got {text!r}, expected whole numbers separated by commas") from None


def measured(args: argparse.Namespace) -> str:
    """Runs what the options ask for, and returns the report."""
    try:
        budgets = [float(budget) for budget in args.budget.split(",")]
    except ValueError:
        raise UsageError(f"-b: got {args.budget!r}, expected numbers separated by commas") from None
    if args.questions < 1:
        raise UsageError(f"--questions: got {args.questions}, expected 1 or more")
    if args.seed < 0:
        raise UsageError(f"--seed: got {args.seed}, expected 0 or more")
    bundle = Bundle.open(find_bundle(args.bundle))
    model = SolModel(OneStepEngine(bundle, provider="cpu", threads=args.threads), BytesCost(bundle.config))
    schedules = args.schedules.split(",")
    settings = settings_of(model, schedules, budgets)
    tasks = tasks_of(model, args)
    valid = state_settings(model)
    state = State(args.state, {"bundle": valid["bundle"], "kernels": valid["kernels"], "made by": "tasks.py"})
    if not args.report:
        for task in tasks:
            run(model, task, settings, state, lambda done, total, task=task: shown(task.name, done, total))  # type: ignore[misc]
    return report(model, tasks, schedules, budgets, state)


def shown(name: str, done: int, total: int) -> None:
    """Reports the progress of a task on stderr."""
    print(f"{name}: {done} of {total} questions", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="folder, or the name of an exported bundle")
    parser.add_argument("--tasks", required=True, help=f"some of {', '.join(TASKS)}, separated by commas")
    parser.add_argument("-b", "--budget", default=",".join(f"{budget:g}" for budget in BUDGETS))
    parser.add_argument("--schedules", default="dense,hull", help=f"some of {', '.join(SCHEDULES)}")
    parser.add_argument("--questions", type=int, default=200, help="of each task, at most")
    parser.add_argument("--state", type=Path, help="file that keeps the answers")
    parser.add_argument("--report", action="store_true", help="print what the state holds, and ask nothing")
    parser.add_argument("--mmlu", type=Path, help="folder with test/SUBJECT_test.csv and dev/SUBJECT_dev.csv")
    parser.add_argument("--shots", default="0", help="examples before a question of MMLU or GSM8K, such as 0,5")
    parser.add_argument("--gsm8k", type=Path, help="file of JSON lines")
    parser.add_argument("-f", "--file", type=Path, action="append", help="a text; may be repeated")
    parser.add_argument("-c", "--ctx-size", default="2048", help="tokens of a haystack")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of questions, 0 or more")
    parser.add_argument("-t", "--threads", type=int)
    try:
        print(measured(parser.parse_args()))
    except SolError as error:
        raise SystemExit(f"tasks.py: {error}") from None


if __name__ == "__main__":
    main()
