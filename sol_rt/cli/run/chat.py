"""`sol-rt chat`: a conversation whose budget can change between answers."""

from __future__ import annotations

import io
import sys
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sol_rt.cli import options
from sol_rt.cli.console import note, print_text
from sol_rt.cli.run.chat_input import entries
from sol_rt.cli.run.governed import Governor, Rate, check_governable, check_keeps_loss, is_governable
from sol_rt.cli.run.interrupts import Interrupts
from sol_rt.cli.run.sensors import Sensors
from sol_rt.errors import ContextError, SolError, UsageError, cut

if TYPE_CHECKING:
    from sol_rt.budget.dial import Dial
    from sol_rt.generate.model import SolModel
    from sol_rt.generate.results import Generation
    from sol_rt.generate.stream import Stream

_HELP = """/budget 0.3     set the budget of the next answers, a share (0 to 1) of the dense cost; alone, show the dial
/max-loss 2%    set instead by how much their perplexity may rise; default, here or after /budget, sets neither
/schedule NAME  set the schedule: sol, hull, uniform, entropy, random, fixed:TAG or dense
/stats          show budget, speed and actions of the last answer
/system TEXT    set the system message and begin a new conversation; alone, show the message
/save FILE      save the conversation and its settings as JSON
/load FILE      go on with a conversation that was saved
/reset          forget the conversation
/help           show this list
/exit           leave the chat, as Ctrl-D does; Ctrl-C stops an answer
A line that ends with \\ goes on in the next one. A message between \"\"\" and \"\"\" may have several lines."""

_DRAFTS = ("lossless", "lookup")


@dataclass
class Conversation:
    """The messages so far, and the settings of generation. `command` changes settings; `answer` adds messages."""

    model: SolModel
    system: str | None
    settings: dict[str, Any]
    interactive: bool = True
    interrupts: Interrupts = field(default_factory=Interrupts)
    messages: list[dict[str, str]] = field(default_factory=list)
    last: tuple[Generation, dict[str, Any]] | None = None  # an answer, and the settings that it had
    governor: Governor | None = None
    rate: Rate | None = None
    hinted: bool = False  # at a faster variant for prompts

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.messages = [{"role": "system", "content": self.system}] if self.system else []
        self.last = None

    def answer(self, text: str) -> None:
        """Streams the answer to `text`. Ctrl-C ends the answer, and its text so far stays in the conversation.

        A question without an answer is dropped. If the chat is not interactive, Ctrl-C raises KeyboardInterrupt.
        """
        from sol_rt.cli.loading import PromptBar
        from sol_rt.cli.run.generate import bought, slow_prompt

        governor, settings = self._governed()
        asked = [*self.messages, {"role": "user", "content": text}]
        said: list[str] = []
        bar = PromptBar()
        run: Stream | None = None
        try:
            with self.interrupts.heeded():
                run = self.model.stream(asked, progress=bar, **settings)
                tokens = bar.answered(run)
                if governor is not None:
                    tokens = governor.govern(run, tokens)
                elif (wanted := settings.get("tokens_per_second")) is not None:
                    if self.rate is None or self.rate.wanted != wanted:
                        self.rate = Rate(wanted)
                    tokens = self.rate.follow(run, tokens)
                for step in tokens:
                    said.append(step.text)
                    print_text(step.text)
        except KeyboardInterrupt:
            if run is not None:
                run.close()
            if not self.interactive:
                print(flush=True)
                raise
            note(" (stopped)")
        except ContextError as error:
            raise self._full(error) from None
        except SolError:
            if any(said):
                print(flush=True)
            raise
        print()
        result = None if run is None else run.result
        self.last = None if result is None else (result, {**settings})
        if result is not None:
            self.messages = [*asked, {"role": "assistant", "content": "".join(said)}]
            note(bought(result, settings, self.model.bundle.config.dense.variant))
            if not self.hinted and (line := slow_prompt(result, self.model.bundle.config)):
                self.hinted = True
                note(line)

    def _full(self, error: ContextError) -> ContextError:
        """The error of a message for which the context has no room, with the ways to go on."""
        most = self.model.bundle.config.model.max_context
        more = f"; sol-rt chat -c {most} has more room" if self.model.engine.max_context < most else ""
        got, _, advice = str(error).removeprefix("prompt: ").partition("; ")
        if not any(message["role"] == "user" for message in self.messages):
            return ContextError(f"prompt: {got}; {advice}{more}")
        return ContextError(f"the conversation is full: {got}; /save FILE keeps it, /reset begins a new one{more}")

    def _governed(self) -> tuple[Governor | None, dict[str, Any]]:
        """Returns the governor of the next answer's budget, and the answer's settings.

        No governor where the settings hold something other than a budget.
        """
        if self.governor is None or not is_governable(self.settings):
            return None, self.settings
        self.governor.limit(self.settings.get("budget"))
        return self.governor, {**self.settings, "budget": self.governor.budget, "tokens_per_second": None}

    def command(self, line: str) -> bool:
        """Runs a line that begins with a slash. Returns False if the conversation ends.

        Raises UsageError for an unknown command or argument.
        """
        from sol_rt.cli.run.generate import report

        name, *rest = line.split(None, 1)
        argument = rest[0].strip() if rest else ""
        if name in {"/exit", "/quit", "/bye"}:
            return False
        if name == "/reset":
            self.reset()
        elif name == "/stats":
            if self.last is None:
                note("no answer yet")
            else:
                report(*self.last, self.model.bundle.config.dense.variant)
            self.report_governor()
        elif name in {"/budget", "/max-loss"}:
            self._set_dial(name, argument)
        elif name == "/schedule":
            self._set_schedule(argument)
        elif name == "/system":
            self._set_system(argument)
        elif name in {"/save", "/load"}:
            if not argument:
                raise UsageError(f"{name}: expected a file, for example {name} chat.json")
            (self._save if name == "/save" else self._load)(argument)
        elif name in {"/help", "/?"}:
            note(_HELP)
        else:
            raise UsageError(f"{name}: no such command; /help lists the commands")
        return True

    def report_governor(self) -> None:
        """Prints on stderr what the governor does, if there is one."""
        self._governed()  # sets its bounds to what is asked for now
        if self.governor is not None:
            note(self.governor.told())

    def _set_dial(self, name: str, argument: str) -> None:
        """Sets the budget or the loss of the next answers, or neither for `default`; without an argument, shows what
        holds.
        """
        from sol_rt.budget.schedules import is_constant

        if not argument:
            note(self._held())
            return
        asked: dict[str, Any] = {"budget": None, "tokens_per_second": None, "max_loss": None, "lossless": False}
        if argument != "default":
            asked[name[1:].replace("-", "_")] = _budget(argument) if name == "/budget" else _max_loss(argument)
        settings = {**self.settings, **asked}
        if is_constant(settings["schedule"] or ""):
            settings["schedule"] = None
        self.model.check(_dial_of(settings))  # raises for a loss where none was measured
        self.settings = settings
        note(self._dial())

    def _set_schedule(self, argument: str) -> None:
        from sol_rt.budget.schedules import NAMES, is_constant

        if not argument:
            raise UsageError(f"/schedule: expected one of {', '.join(NAMES)}")
        if self.governor is not None:
            check_keeps_loss(argument, self.governor.max_loss)
        settings = {**self.settings, "schedule": argument, "lossless": False}
        if is_constant(argument):
            settings |= {"budget": None, "tokens_per_second": None, "max_loss": None}  # a fixed action takes no budget
        self.model.check(_dial_of(settings))  # raises for a schedule that this bundle or the dial cannot have
        self.settings = settings
        note(f"schedule {argument}")
        if line := self.model.ineffective(argument, None, None, None):
            note(line)

    def _held(self) -> str:
        """Names in words what holds the cost of the next answer: the governor, or the dial."""
        governor, settings = self._governed()
        if governor is None:
            return self._dial()
        return governor.told() + (f", schedule {settings['schedule']}" if settings.get("schedule") else "")

    def _dial(self) -> str:
        """The settings of the dial in words."""
        if self.settings.get("lossless"):
            return "lossless: the text of budget 1, by drafts"
        dial = asdict(_dial_of(self.settings))
        return (
            ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in dial.items() if value is not None)
            or "none is set: the fastest mix that loses at most 0.5% runs"
        )

    def _set_system(self, argument: str) -> None:
        from sol_rt.cli.run.saved_chat import is_text

        if not argument:
            note(f"system message: {self.system}" if self.system else "no system message")
            return
        if not is_text(argument):
            raise UsageError("/system: not valid Unicode text; give it as UTF-8")
        self.system = argument
        self.reset()
        note("system message set; this is a new conversation")

    def _save(self, file: str) -> None:
        from sol_rt.cli.run.saved_chat import SavedChat

        said = [message for message in self.messages if message["role"] != "system"]
        given = {name: value for name, value in self.settings.items() if value is not None and value is not False}
        path = SavedChat(self.model.bundle.config.model.name, self.system, said, given).write(file)
        note(f"{path}: saved, {len(said)} messages")

    def _load(self, file: str) -> None:
        from sol_rt.cli.run.saved_chat import read

        saved, name = read(file), self.model.bundle.config.model.name
        try:
            settings = _checked(saved.settings, self.model)
            if self.governor is not None:
                check_keeps_loss(settings.get("schedule"), self.governor.max_loss)
        except SolError as error:
            raise UsageError(f"/load {file}: {error}") from None
        self.system, self.settings = saved.system, settings
        self.reset()
        self.messages += saved.messages
        other = "" if saved.model == name else f"; it was held with {cut(saved.model)}"
        note(f"{file}: {len(saved.messages)} messages, {self._held()}{other}")


def _budget(text: str) -> float:
    try:
        budget = float(text)
    except ValueError:
        budget = -1.0
    if not 0 <= budget <= 1:
        raise UsageError(f"/budget {text}: expected a number from 0 to 1, for example /budget 0.3, or default")
    return budget


def _max_loss(text: str) -> float:
    loss = options.share(text)
    if loss is None or not loss >= 0:
        raise UsageError(f"/max-loss {text}: {options.LOSS_SHARE}, or default")
    return loss


def _dial_names() -> set[str]:
    """Settings that are the dial's alone: a seed is the generation's too."""
    from sol_rt.budget.dial import Dial

    return {setting.name for setting in fields(Dial)} - {"seed"}


def _dial_of(settings: dict[str, Any]) -> Dial:
    """The part of the settings that sets the dial. Raises UsageError for a value of another type."""
    from sol_rt.budget.dial import Dial

    names = _dial_names()
    return Dial(**{name: value for name, value in settings.items() if name in names})


def _checked(settings: dict[str, Any], model: SolModel) -> dict[str, Any]:
    """Settings of a file as arguments of `SolModel.stream`. Raises UsageError for those that the model can't use."""
    from sol_rt.generate.arguments import as_switch
    from sol_rt.generate.generation_config import GenerationConfig

    for name in _DRAFTS:
        as_switch(name, settings.get(name, False))
    dial, names = _dial_of(settings), _dial_names().union(_DRAFTS)
    others = {name: value for name, value in settings.items() if name not in names}
    GenerationConfig().updated(**others).check_vocabulary(model.bundle.config.model.vocab_size)
    model.check(dial)  # raises for values that are out of range, contradict or can't be reached
    return {"schedule": None, **settings}


def chat(
    model: options.Model = None,
    system: Annotated[str | None, options.option("--system", help="System message of the conversation.")] = None,
    prompt: Annotated[
        str | None,
        options.option("-p", "--prompt", env=False, help="Ask this one question, print the answer and exit."),
    ] = None,
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
    governor: options.Governor = False,
    max_loss: options.MaxLoss = None,
    schedule: options.Schedule = None,
    lossless: options.Lossless = False,
    lookup: options.Lookup = False,
    prefill: options.Prefill = None,
    provider: options.Provider = "auto",
    device: options.Device = 0,
    threads: options.Threads = None,
    native_ops: options.NativeOps = True,
    verify: options.Verify = True,
    debug: options.Debug = False,
) -> None:
    """Chat with a model. /budget 0.3 sets the budget of the next answers; /help lists all commands.

    Messages and commands may be piped, one a line. After a wrong command, a message that is not UTF-8 or one that finds
    no room, the chat goes on with the next line. Its exit code at the end is then 1.
    """
    from sol_rt.cli.loading import dial, load, note_ineffective
    from sol_rt.cli.run.generate import penalties, report_figures, sampling
    from sol_rt.cli.run.saved_chat import is_text

    if system is not None and not is_text(system):
        raise UsageError("--system: not valid Unicode text; give it as UTF-8")
    rate, loss = (None, None) if governor else (tokens_per_second, max_loss)  # a governor holds both itself
    settings = {
        **dial(schedule, budget, rate, None, None, None, loss),
        **sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed, stop),
        **penalties(presence_penalty, frequency_penalty, logit_bias),
        "lossless": lossless,
        "lookup": lookup,
    }
    if max_new_tokens is not None:
        settings["max_new_tokens"] = max_new_tokens
    machine: dict[str, Any] = {"provider": provider, "threads": threads, "native_ops": native_ops, "device": device}
    interactive = prompt is None and sys.stdin.isatty()
    sensors = None
    if governor:
        check_governable(settings, tokens_per_second, max_loss)
        sensors = Sensors()
    loaded = load(model, **machine, ctx_size=ctx_size, prefill=prefill, verify=verify)
    note_ineffective(loaded, settings)
    conversation = Conversation(loaded, system, settings, interactive)
    if sensors is not None:
        conversation.governor = Governor(loaded, sensors, budget, tokens_per_second, max_loss)
    if prompt is not None:
        if not prompt.strip():
            raise UsageError("the prompt is empty; give some text with -p")
        conversation.answer(prompt)
        if conversation.last is not None:
            report_figures(conversation.last[0])
        conversation.report_governor()
        return
    if not interactive:
        if not _piped(conversation):
            raise typer.Exit(1)
        return
    note("/help lists the commands")
    with conversation.interrupts.installed():
        _typed(conversation)


def _piped(conversation: Conversation) -> bool:
    """Answers the lines of stdin. Returns whether all of them were text, and all commands among them right."""
    from sol_rt.cli.run.saved_chat import is_text

    good = True

    def wrong(said: object) -> None:
        nonlocal good
        good = False
        note(f"sol-rt: error: {said}")

    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # bytes that are no text then fail alone, not all that follows
    for number, (text, is_command) in enumerate(entries(False, conversation.interrupts), 1):
        if not is_command:
            if not is_text(text):
                wrong(f"chat: message {number}: got text that is not UTF-8; convert it with iconv")
                continue
            try:
                conversation.answer(text)
            except ContextError as error:  # /save and /reset may follow
                wrong(error)
            continue
        try:
            if not conversation.command(text.strip()):
                break
        except SolError as error:
            wrong(error)
    return good


def _typed(conversation: Conversation) -> None:
    """Answers what is typed, until the user leaves. No error ends the chat, and no Ctrl-C does."""
    for text, is_command in entries(True, conversation.interrupts):
        try:
            if not is_command:
                conversation.answer(text)
                continue
            with conversation.interrupts.heeded():
                going_on = conversation.command(text.strip())
            if not going_on:
                return
        except SolError as error:
            note(f"error: {error}")
        except KeyboardInterrupt:  # in a command
            note("")
