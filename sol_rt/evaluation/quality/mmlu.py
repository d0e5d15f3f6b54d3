"""Asks MMLU's questions under several schedules and scores the answers."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from sol_rt.budget.dial import Dial
from sol_rt.budget.schedules import NAMES, is_constant
from sol_rt.bundle.config import SolConfig
from sol_rt.errors import ContextError, UsageError
from sol_rt.evaluation.quality.continuations import PromptScorer
from sol_rt.evaluation.quality.exam import LETTERS, Exam
from sol_rt.evaluation.quality.perplexity import added_bos
from sol_rt.evaluation.quality.runs import DENSE, Setting
from sol_rt.evaluation.quality.state import State
from sol_rt.generate.loop import Decoder
from sol_rt.generate.model import SolModel
from sol_rt.progress import Progress

BUDGETS = (0.4, 0.6)


@dataclass(frozen=True)
class Answered:
    """Answer of a schedule to a question.

    Attributes:
        scores: log-probability of each choice, nats.
        lengths: characters of each choice.
        tokens: number of scored tokens, over all choices.
        spent: cost of the decode steps, in the cost model's unit.
        full: dense cost of the same steps.
        actions: number of decode steps by action tag.
        cut: number of tokens that were cut from the prompt's beginning to fit the context.
    """

    scores: list[float]
    lengths: list[int]
    tokens: int
    spent: float
    full: float
    actions: dict[str, int]
    cut: int = 0

    @property
    def choice(self) -> int:
        """Index of the likeliest choice."""
        return int(np.argmax(self.scores))

    @property
    def normalised_choice(self) -> int:
        """Index of the choice with the highest log-probability per character."""
        return int(np.argmax(np.array(self.scores) / np.maximum(self.lengths, 1)))


def settings_of(config: SolConfig, schedules: Sequence[str], budgets: Sequence[float]) -> list[Setting]:
    """Every schedule at every budget. Schedules without a budget come once and first, led by `dense`.

    Raises UsageError for an unknown schedule, for `sol` without a policy, and for a budget outside 0 to 1.
    """
    for budget in budgets:
        if not 0 < budget < 1:
            raise UsageError(f"--budget: got {budget}, expected shares of the dense cost over 0 and under 1")
    for name in schedules:
        if name not in NAMES and not name.startswith("fixed:"):
            raise UsageError(f"--schedules: got {name!r}, expected some of {', '.join(NAMES)}")
        if name == "sol" and config.policy is None:
            raise UsageError("--schedules sol: this bundle has no policy; leave it out, or train one")
    constant = [Setting(name) for name in schedules if is_constant(name) and name != "dense"]
    steady = [
        Setting(name, budget, 0 if name == "random" else None)
        for budget in budgets
        for name in schedules
        if not is_constant(name)
    ]
    return [DENSE, *constant, *steady]


def sit(
    model: SolModel, exam: Exam, settings: Sequence[Setting], state: State, progress: Progress
) -> list[list[Answered]]:
    """Asks every question under every setting and returns the answers as [settings][questions].

    Each setting has one controller, which keeps the budget from question to question, as in a server. A run that
    continues from a state file starts with a new controller. A prompt that does not fit into the context together with
    its longest answer loses its beginning, as in lm-evaluation-harness.

    Raises ContextError if an answer alone does not fit.
    """
    encode = model.tokenizer.encode
    scorer = PromptScorer(model.engine, exam.tail)
    dials = [
        Dial(
            1.0 if setting.budget is None else setting.budget,
            setting.schedule,
            seed=setting.seed,
        )
        for setting in settings
    ]
    decoders = [model.decoder(dial)[1] for dial in dials]
    found: list[list[Answered]] = [[] for _ in settings]
    total, bos = len(exam.questions), added_bos(model)
    for done, question in enumerate(exam.questions):
        progress("questions", done, total)
        prompt = exam.prompt(question)
        tokens = encode(prompt, add_special_tokens=True)
        answers = [encode(prompt + answer, add_special_tokens=True)[len(tokens) :] for answer in exam.answers(question)]
        tokens, cut = fitted(tokens, max(map(len, answers)), model.engine.max_context, bos)
        # lm-evaluation-harness counts a choice's characters without the leading space
        lengths = [len(choice) for choice in (LETTERS if exam.form == "letter" else question.choices)]
        for setting, decoder, results in zip(settings, decoders, found, strict=True):
            key = _key(model.bundle.config, tokens, answers, exam, setting)
            held = state.get(key)
            if held is None:
                scorer.open(tokens)
                held = asdict(answered_by(scorer, decoder, answers, lengths, cut))
                state.put(key, held)
            results.append(Answered(**held))
    progress("questions", total, total)
    return found


def fitted(prompt: list[int], answer: int, limit: int, bos: int | None) -> tuple[list[int], int]:
    """Cuts a prompt's beginning, so that the prompt and an answer of `answer` tokens fit into `limit` tokens.

    The last token of an answer takes no place: it is predicted and never read. A BOS token stays.

    Returns the prompt's tokens, and how many were cut. Raises ContextError if the answer alone does not fit.
    """
    room = limit - (answer - 1)
    if room < 2:
        raise ContextError(f"--mmlu: an answer has {answer} tokens, the context {limit}; use another model or subject")
    cut = max(len(prompt) - room, 0)
    if not cut:
        return prompt, 0
    return (prompt[cut:] if bos is None else [bos, *prompt[cut + 1 :]]), cut


def answered_by(
    scorer: PromptScorer, decoder: Decoder, answers: Sequence[Sequence[int]], lengths: Sequence[int], cut: int
) -> Answered:
    """Scores the answers, token ids of each, after the scorer's opened prompt. `lengths` are their characters."""
    before = Counter(decoder.actions)
    if all(len(answer) == 1 for answer in answers):
        # one decode step predicts all answers
        results = [scorer.score(decoder, answers[0])]
        row = decoder.output.distribution
        scores = [row.log_probability(answer[0]) for answer in answers]
    else:
        results = [scorer.score(decoder, answer) for answer in answers]
        scores = [float(result.logprobs.sum()) for result in results]
    return Answered(
        scores,
        list(lengths),
        sum(map(len, answers)),
        sum(result.spent for result in results),
        sum(result.full for result in results),
        dict(decoder.actions - before),
        cut,
    )


def _key(
    config: SolConfig, tokens: Sequence[int], answers: Sequence[Sequence[int]], exam: Exam, setting: Setting
) -> str:
    asked = hashlib.sha256(f"{exam.tail} {list(tokens)} {[list(answer) for answer in answers]}".encode()).hexdigest()
    policy = config.files[config.policy.file].sha256[:16] if setting.schedule == "sol" and config.policy else ""
    return f"mmlu {asked[:16]} {setting.key} {policy}".strip()
