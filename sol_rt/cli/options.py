"""Options that several subcommands share. Most can also be set by an environment variable such as `SOL_RT_TOP_K`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from sol_rt.cli import completion
from sol_rt.errors import UsageError


def option(*flags: str, help: str, env: bool = True, panel: str | None = None, **settings: Any) -> Any:
    """Makes a typer option. With `env`, an environment variable named after the first long flag sets it too.

    The shell completes the values of the flags in `completion.FOR_FLAG`.
    """
    long = next(flag for flag in flags if flag.startswith("--"))
    settings.setdefault("autocompletion", completion.FOR_FLAG.get(long))
    variable = "SOL_RT_" + long.split("/")[0].removeprefix("--").replace("-", "_").upper()
    return typer.Option(
        *flags, help=help, envvar=variable if env else None, show_envvar=False, rich_help_panel=panel, **settings
    )


Command = TypeVar("Command", bound=Callable[..., None])


def with_options_of(command: Callable[..., None], *, without: Sequence[str]) -> Callable[[Command], Command]:
    """Gives a command that takes keywords the options of another command, except those in `without`."""

    def decorate(own: Command) -> Command:
        mine = inspect.signature(own, eval_str=True).parameters.values()
        others = inspect.signature(command, eval_str=True).parameters.values()
        shown = [parameter for parameter in mine if parameter.kind is not parameter.VAR_KEYWORD]
        shown += [parameter for parameter in others if parameter.name not in without]
        own.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
        own.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
        return own

    return decorate


def with_model_argument(command: Callable[..., None]) -> Callable[..., None]:
    """A command that also takes what `-m` names as its argument, as in `sol-rt inspect NAME`."""
    parameters = inspect.signature(command, eval_str=True).parameters
    required = parameters["model"].default is inspect.Parameter.empty

    def own(named: str | None = None, **given: Any) -> None:
        model = given.pop("model")
        if named is not None and model not in (None, named):
            raise UsageError(f"--model: got two, {model} and the argument {named}; give one")
        model = model if named is None else named
        if required and model is None:
            raise UsageError("--model: got none, expected one, for example -m smollm2-135m")
        command(model=model, **given)

    argument: Any = typer.Argument(
        metavar="[MODEL]",
        help="What -m names, given as an argument.",
        autocompletion=completion.sources if required else completion.bundles,
    )
    kind = Annotated[str | None, argument]
    shown = {"named": inspect.Parameter("named", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)}
    shown |= {name: each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for name, each in parameters.items()}
    shown["model"] = shown["model"].replace(default=None)
    own.__doc__ = command.__doc__
    own.__signature__ = inspect.Signature(list(shown.values()))  # type: ignore[attr-defined]
    own.__annotations__ = {name: each.annotation for name, each in shown.items()}
    return own


class Format(str, Enum):
    """Formats of a command's result."""

    text = "text"
    json = "json"


class TableFormat(str, Enum):
    """Formats of rows."""

    md = "md"
    json = "json"


DECODING, BUDGET, MACHINE = "Decoding", "Budget", "Machine"

# find_bundle reads $SOL_RT_MODEL, so that Python and the command line have the same rules.
Model = Annotated[
    str | None,
    option(
        "-m",
        "--model",
        env=False,
        help="Folder or name of a bundle; default: $SOL_RT_MODEL, else the bundle exported or pulled last.",
        autocompletion=completion.bundles,
    ),
]
Output = Annotated[Format, option("-o", "--output-format", env=False, help="Output format: text or json.")]
Json = Annotated[bool, option("--json", env=False, help="Print one JSON object instead of text.")]

Prompt = Annotated[
    str | None, option("-p", "--prompt", env=False, help="Prompt text; default: stdin if piped, else a short one.")
]
File = Annotated[Path | None, option("-f", "--file", env=False, help="File to read the prompt from; - is stdin.")]
MaxNewTokens = Annotated[
    int | None,
    option(
        "-n",
        "--max-new-tokens",
        "--max-tokens",
        min=1,
        help="Largest number of tokens to generate; default: the model's own, else 256.",
        panel=DECODING,
    ),
]
ContextSize = Annotated[
    int | None,
    option(
        "-c",
        "--ctx-size",
        min=2,
        help="Largest context (prompt and text), in tokens; default: the model's.",
        panel=DECODING,
    ),
]
Temperature = Annotated[
    float | None,
    option("--temperature", "--temp", min=0.0, help="Temperature; 0 is greedy; default: the model's.", panel=DECODING),
]
TopK = Annotated[
    int | None,
    option(
        "--top-k", min=0, help="Sample from the k likeliest tokens; 0 for all; default: the model's.", panel=DECODING
    ),
]
TopP = Annotated[
    float | None,
    option(
        "--top-p",
        min=0.0,
        max=1.0,
        help="Sample from the likeliest tokens that together have this probability; default: the model's.",
        panel=DECODING,
    ),
]
MinP = Annotated[
    float | None,
    option(
        "--min-p",
        min=0.0,
        max=1.0,
        help="Drop tokens below this share of the top probability; default: the model's.",
        panel=DECODING,
    ),
]
RepetitionPenalty = Annotated[
    float | None,
    option(
        "--repetition-penalty",
        "--repeat-penalty",
        min=0.0,
        help="Penalty on tokens that occurred before; 1 means none; default: the model's.",
        panel=DECODING,
    ),
]
PresencePenalty = Annotated[
    float | None,
    option(
        "--presence-penalty",
        min=-2.0,
        max=2.0,
        help="Subtracted from the logits of tokens that the text has, as in OpenAI's API; 0 means none.",
        panel=DECODING,
    ),
]
FrequencyPenalty = Annotated[
    float | None,
    option(
        "--frequency-penalty",
        min=-2.0,
        max=2.0,
        help="Subtracted from a token's logit for each time that the text has it, as in OpenAI's API; 0 means none.",
        panel=DECODING,
    ),
]
LogitBias = Annotated[
    list[str] | None,
    option(
        "--logit-bias",
        env=False,
        metavar="ID=BIAS",
        help="Add BIAS (-100 to 100) to the logit of token ID; -100 bans it. ID+BIAS and ID-BIAS work too; may be "
        "repeated.",
        panel=DECODING,
    ),
]
Seed = Annotated[
    int | None,
    option(
        "-s",
        "--seed",
        min=0,
        help="Seed of sampling and of the random schedule; default: another one each time.",
        panel=DECODING,
    ),
]
Stop = Annotated[
    list[str] | None,
    option("--stop", env=False, help="End the text before this string; may be repeated.", panel=DECODING),
]

Budget = Annotated[
    float | None,
    option(
        "-b",
        "--budget",
        metavar="SHARE",
        parser=lambda value: _budget(value),
        help="Mean cost of a decode step, as a share (0 to 1) of the dense step's, in milliseconds if they were "
        "measured, else in bytes; 1 is exactly dense.",
        panel=BUDGET,
    ),
]
TokensPerSecond = Annotated[
    float | None,
    option(
        "--tokens-per-second",
        min=0.0,
        help="Instead of --budget: tokens per second to keep at the best quality. The budget follows what steps take; "
        "the last line on stderr says if the rate was missed.",
        panel=BUDGET,
    ),
]
Governor = Annotated[
    bool,
    option(
        "--governor",
        help="Let battery, heat and --tokens-per-second move the budget, between --budget (default: 1) and the least "
        "one that loses at most --max-loss (default: 10%) behind 512 tokens. Needs psutil.",
        panel=BUDGET,
    ),
]
MaxLoss = Annotated[
    float | None,
    option(
        "--max-loss",
        help="Instead of --budget: run the fastest mix of actions that raises perplexity by at most this share, as 1% "
        "or 0.01. Default, if none of these is given: 0.5%. With --governor: the loss at its lowest budget.",
        panel=BUDGET,
        metavar="SHARE",
        parser=lambda value: _max_loss(value),
    ),
]
Schedule = Annotated[
    str | None,
    option(
        "--schedule",
        help="Schedule: sol, hull, uniform, entropy, random, fixed:TAG or dense; default: sol if the bundle has a "
        "policy that takes at most 3% of a dense step's time, else hull.",
        panel=BUDGET,
    ),
]
KvDensity = Annotated[
    float | None,
    option(
        "--kv-density",
        help="Instead of --budget: mean share (0 to 1) of the old cached tokens to read.",
        panel=BUDGET,
        callback=lambda value: _check_share("--kv-density", value),
    ),
]
ChannelDensity = Annotated[
    float | None,
    option(
        "--channel-density",
        help="Instead of --budget: mean share (0 to 1) of the layers' weights to read.",
        panel=BUDGET,
        callback=lambda value: _check_share("--channel-density", value),
    ),
]
Bits = Annotated[
    float | None, option("--bits", min=1, max=16, help="Instead of --budget: mean weight bits to read.", panel=BUDGET)
]
Lossless = Annotated[
    bool,
    option(
        "--lossless",
        env=False,
        help="Instead of --budget: give the text of --budget 1, often sooner: guess tokens by repeated text or "
        "cheaper steps, and check several at once.",
        panel=BUDGET,
    ),
]
Lookup = Annotated[
    bool,
    option(
        "--lookup",
        env=False,
        help="Guess and check tokens so at any budget. A mix then changes its action less often.",
        panel=BUDGET,
    ),
]

Prefill = Annotated[
    str | None,
    option(
        "--prefill",
        metavar="VARIANT",
        help="Variant that runs prompts, as s100-q4. Default: the dial chooses; in bench and perplexity, dense.",
        panel=MACHINE,
    ),
]
Provider = Annotated[str, option("--provider", help="Where to compute: auto, cpu, cuda or webgpu.", panel=MACHINE)]
Device = Annotated[int, option("--device", min=0, help="Number of the GPU, counted from 0.", panel=MACHINE)]
Threads = Annotated[
    int | None,
    option(
        "-t",
        "--threads",
        min=1,
        help="Number of CPU threads; default: as many as fast cores.",
        panel=MACHINE,
    ),
]
NativeOps = Annotated[
    bool,
    option(
        "--native-ops/--no-native-ops",
        help="Run native operators; without, the graphs' standard ones run, several times slower.",
        panel=MACHINE,
    ),
]
Verify = Annotated[
    bool,
    option(
        "--verify/--no-verify",
        help="Check files of the bundle by their hashes; the weights at the first load and after a change.",
        panel=MACHINE,
    ),
]
Debug = Annotated[
    bool, option("--debug", help="Show the traceback of an error.", callback=lambda value: _remember_debug(value))
]

debug = False
_LOGIT_BIAS = re.compile(r"(?P<id>[0-9]+)(?:=(?P<set>[^=]+)|(?P<step>[+-][^=]+))")


def _check_share(flag: str, value: float | None) -> float | None:
    """Returns the value. Raises UsageError if it is not a share from 0 to 1, for example a percentage."""
    if value is not None and not 0 <= value <= 1:
        raise UsageError(f"{flag} {value:g}: expected a share from 0 to 1, for example 0.3")
    return value


def _budget(value: str | float) -> float:
    """Reads a share of the dense cost. Raises BadParameter for anything else; Typer adds the option and its value."""
    if (budget := share(str(value))) is None:
        raise typer.BadParameter("expected a share of the dense cost from 0 to 1, for example 0.3")
    return budget


LOSS_SHARE = "expected a share of the dense perplexity from 0 to 1, for example 0.02 or 2%"


def _max_loss(value: str | float) -> float:
    """Reads a share of the dense perplexity. Raises BadParameter for anything else."""
    if (loss := share(str(value))) is None:
        raise typer.BadParameter(f"{LOSS_SHARE}; got {value}")
    return loss


def share(text: str) -> float | None:
    """Reads a share from 0 to 1, written as a number or in percent; None for anything else."""
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        found = float(number) / (100 if percent else 1)
    except ValueError:
        return None
    return found if 0 <= found <= 1 else None


def logit_biases(given: Sequence[str]) -> dict[int, float]:
    """The biases of --logit-bias by token id. Raises UsageError if one is neither ID=BIAS, ID+BIAS nor ID-BIAS."""
    biases: dict[int, float] = {}
    for text in given:
        match = _LOGIT_BIAS.fullmatch(text.strip())
        try:
            biases[int(match["id"])] = float(match["set"] or match["step"])  # type: ignore[index]
        except (TypeError, ValueError):
            raise UsageError(f"--logit-bias {text!r}: expected ID=BIAS, for example 50256=-100") from None
    return biases


def _remember_debug(value: bool) -> bool:
    global debug
    debug = debug or value
    return value
