"""Options that several subcommands share. Each has an environment variable `SOL_RT_` + its name in capitals."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from sol_rt.cli.renamed import variable_of
from sol_rt.errors import UsageError


def option(*flags: str, help: str, env: bool = True, panel: str | None = None, **settings: Any) -> Any:
    """A typer option whose environment variable mirrors its first long flag."""
    long = next(flag for flag in flags if flag.startswith("--"))
    variable = variable_of(long.split("/")[0])
    return typer.Option(
        *flags, help=help, envvar=variable if env else None, show_envvar=False, rich_help_panel=panel, **settings
    )


class Format(str, Enum):
    """How a command writes its result."""

    text = "text"
    json = "json"


DECODING, BUDGET, MACHINE = "Decoding", "Budget", "Machine"

# $SOL_RT_MODEL is read where a bundle is looked for, so that every front end has the same rules.
Model = Annotated[
    str | None,
    option("-m", "--model", env=False, help="Bundle folder or name; default: $SOL_RT_MODEL, else the last exported."),
]
Output = Annotated[Format, option("-o", "--output-format", env=False, help="text or json.")]
Json = Annotated[bool, option("--json", env=False, help="Print one JSON object instead of text.")]

Prompt = Annotated[str | None, option("-p", "--prompt", env=False, help="The prompt; default: stdin when piped.")]
File = Annotated[Path | None, option("-f", "--file", env=False, help="Read the prompt from a file.")]
MaxNewTokens = Annotated[
    int | None,
    option(
        "-n",
        "--max-new-tokens",
        "--max-tokens",
        min=1,
        help="Tokens to generate at most; default: the model's, else 256.",
        panel=DECODING,
    ),
]
ContextSize = Annotated[
    int | None, option("-c", "--ctx-size", min=2, help="Limit of prompt and text together, in tokens.", panel=DECODING)
]
Temperature = Annotated[
    float | None, option("--temperature", "--temp", min=0.0, help="0 is greedy; default: the model's.", panel=DECODING)
]
TopK = Annotated[int | None, option("--top-k", min=0, help="Sample from the k likeliest tokens.", panel=DECODING)]
TopP = Annotated[
    float | None, option("--top-p", min=0.0, max=1.0, help="Sample from this much probability mass.", panel=DECODING)
]
MinP = Annotated[
    float | None,
    option("--min-p", min=0.0, max=1.0, help="Drop tokens under this share of the top probability.", panel=DECODING),
]
RepetitionPenalty = Annotated[
    float | None, option("--repetition-penalty", "--repeat-penalty", min=0.0, help="1 is none.", panel=DECODING)
]
Seed = Annotated[
    int | None, option("-s", "--seed", min=0, help="Seed of sampling and random schedules.", panel=DECODING)
]
Stop = Annotated[
    list[str] | None, option("--stop", env=False, help="Stop before this string; may be repeated.", panel=DECODING)
]

Budget = Annotated[
    float | None,
    option(
        "-b", "--budget", min=0.0, max=1.0, help="Share of the full cost of a decode step; default: 1.", panel=BUDGET
    ),
]
TokensPerSecond = Annotated[
    float | None,
    option("--tokens-per-second", min=0.0, help="Instead of a budget: the best quality at this speed.", panel=BUDGET),
]
Schedule = Annotated[
    str | None,
    option(
        "--schedule",
        help="sol, uniform, entropy, random, fixed:TAG or dense; default: sol where there is a policy, else uniform.",
        panel=BUDGET,
    ),
]
KvDensity = Annotated[
    float | None,
    option(
        "--kv-density",
        help="Instead: mean share of the old cached tokens to read, 0 to 1.",
        panel=BUDGET,
        callback=lambda value: _check_share("--kv-density", value),
    ),
]
ChannelDensity = Annotated[
    float | None,
    option(
        "--channel-density",
        help="Instead: mean share of the layers' weights to read, 0 to 1.",
        panel=BUDGET,
        callback=lambda value: _check_share("--channel-density", value),
    ),
]
Bits = Annotated[float | None, option("--bits", min=1, max=16, help="Instead: mean weight bits.", panel=BUDGET)]

Provider = Annotated[str, option("--provider", help="Where to compute: auto, cpu, cuda or webgpu.", panel=MACHINE)]
Device = Annotated[int, option("--device", min=0, help="Which GPU, counted from 0.", panel=MACHINE)]
Threads = Annotated[
    int | None, option("-t", "--threads", min=1, help="CPU threads; default: all cores.", panel=MACHINE)
]
NativeOps = Annotated[
    bool,
    option("--native-ops/--no-native-ops", help="Native kernels, or the graphs' standard operators.", panel=MACHINE),
]
Debug = Annotated[
    bool, option("--debug", help="Show the traceback of an error.", callback=lambda value: _remember_debug(value))
]

debug = False


def _check_share(flag: str, value: float | None) -> float | None:
    """The value. Raises UsageError where it is no share, as percent are none."""
    if value is not None and not 0 <= value <= 1:
        raise UsageError(f"{flag} {value:g}: expected a share from 0 to 1, for example 0.3")
    return value


def _remember_debug(value: bool) -> bool:
    global debug
    debug = debug or value
    return value
