"""`sol-rt chat`: a conversation whose budget can change between answers."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from sol_rt.cli import options
from sol_rt.cli.console import note
from sol_rt.errors import SolError, UsageError

if TYPE_CHECKING:
    from sol_rt.generate.model import SolModel
    from sol_rt.generate.results import Generation

_HELP = """/budget 0.3     set the budget of the next answers, a share (0 to 1) of the dense cost
/schedule NAME  set the schedule: sol, uniform, entropy, random, fixed:TAG or dense
/stats          show budget, speed and actions of the last answer
/reset          forget the conversation
/exit           leave the chat, as Ctrl-D does; Ctrl-C stops an answer"""


@dataclass
class Conversation:
    """The messages so far, and the settings of generation. `command` changes settings; `answer` adds messages."""

    model: SolModel
    system: str | None
    settings: dict[str, Any]
    interactive: bool = True
    messages: list[dict[str, str]] = field(default_factory=list)
    last: Generation | None = None

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.messages = [{"role": "system", "content": self.system}] if self.system else []
        self.last = None

    def answer(self, text: str) -> None:
        """Streams the answer to `text`. Ctrl-C ends the answer, and its text so far stays in the conversation.

        If the chat is not interactive, Ctrl-C raises KeyboardInterrupt.
        """
        self.messages.append({"role": "user", "content": text})
        said: list[str] = []
        run = self.model.stream(self.messages, **self.settings)
        try:
            for step in run:
                said.append(step.text)
                sys.stdout.write(step.text)
                sys.stdout.flush()
        except KeyboardInterrupt:
            run.close()
            if not self.interactive:
                print(flush=True)
                raise
            note(" (stopped)")
        except SolError:
            if any(said):
                print(flush=True)
            self.messages.pop()
            raise
        print()
        self.last = run.result
        if run.result is None:  # stopped before the first token: drop the question
            self.messages.pop()
        else:
            self.messages.append({"role": "assistant", "content": "".join(said)})

    def command(self, line: str) -> bool:
        """Runs a line that begins with a slash. Returns False if the conversation ends.

        Raises UsageError for an unknown command or argument.
        """
        from sol_rt.cli.run.generate import report

        name, _, argument = line.partition(" ")
        argument = argument.strip()
        if name in {"/exit", "/quit", "/bye"}:
            return False
        if name == "/reset":
            self.reset()
        elif name == "/stats":
            if self.last is None:
                note("no answer yet")
            else:
                report(self.last)
        elif name == "/budget":
            self._set_budget(argument)
        elif name == "/schedule":
            self._set_schedule(argument)
        elif name in {"/help", "/?"}:
            note(_HELP)
        else:
            raise UsageError(f"{name}: no such command; /help lists the commands")
        return True

    def _set_budget(self, argument: str) -> None:
        from sol_rt.budget.schedules import is_constant

        try:
            budget = float(argument)
        except ValueError:
            raise UsageError(f"/budget {argument}: expected a number from 0 to 1, for example /budget 0.3") from None
        if not 0 <= budget <= 1:
            raise UsageError(f"/budget {argument}: expected a number from 0 to 1")
        if is_constant(self.settings["schedule"] or ""):
            self.settings["schedule"] = None
        self.settings.update(budget=budget, tokens_per_second=None)
        note(f"budget {budget:g}")

    def _set_schedule(self, argument: str) -> None:
        from sol_rt.budget.schedules import is_constant
        from sol_rt.cli.loading import check_schedule

        check_schedule(argument, self.model.bundle.config)
        self.settings["schedule"] = argument
        if is_constant(argument):
            self.settings.update(budget=1.0, tokens_per_second=None)  # a fixed action takes no budget
        note(f"schedule {argument}")


def chat(
    model: options.Model = None,
    system: Annotated[str | None, options.option("--system", help="System message of the conversation.")] = None,
    max_new_tokens: options.MaxNewTokens = None,
    ctx_size: options.ContextSize = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    presence_penalty: options.PresencePenalty = None,
    frequency_penalty: options.FrequencyPenalty = None,
    logit_bias: options.LogitBias = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
    budget: options.Budget = None,
    tokens_per_second: options.TokensPerSecond = None,
    schedule: options.Schedule = None,
    provider: options.Provider = "auto",
    device: options.Device = 0,
    threads: options.Threads = None,
    native_ops: options.NativeOps = True,
    debug: options.Debug = False,
) -> None:
    """Chat with a model. /budget 0.3 sets the budget of the next answers; /help lists all commands."""
    from sol_rt.cli.loading import dial, load, note_ineffective
    from sol_rt.cli.run.generate import penalties, sampling

    settings = {
        **dial(schedule, budget, tokens_per_second, None, None, None),
        **sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed, stop),
        **penalties(presence_penalty, frequency_penalty, logit_bias),
    }
    if max_new_tokens is not None:
        settings["max_new_tokens"] = max_new_tokens
    machine: dict[str, Any] = {"provider": provider, "threads": threads, "native_ops": native_ops, "device": device}
    interactive = sys.stdin.isatty()
    loaded = load(model, **machine, ctx_size=ctx_size)
    note_ineffective(loaded, settings)
    conversation = Conversation(loaded, system, settings, interactive)
    if interactive:
        import readline  # noqa: F401  gives input() line editing and history

        note("/help lists the commands")
    while (line := _read(interactive)) is not None:
        if not line.strip():
            continue
        try:
            if not line.startswith("/"):
                conversation.answer(line)
            elif not conversation.command(line.strip()):
                return
        except SolError as error:
            if not interactive:
                raise
            note(f"error: {error}")


def _read(interactive: bool) -> str | None:
    """Reads the next line; None at the end of input. Ctrl-C at the prompt drops the line."""
    while True:
        try:
            return input("> ") if interactive else next(sys.stdin).rstrip("\n")
        except (EOFError, StopIteration):
            return None
        except KeyboardInterrupt:
            note("")
            if not interactive:
                raise
