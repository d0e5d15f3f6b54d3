"""`sol-rt generate` generates text at a budget."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

from sol_rt.cli import options
from sol_rt.cli.console import note, print_json, print_text
from sol_rt.cli.run.governed import Governor, Rate, check_governable
from sol_rt.cli.run.sensors import Sensors
from sol_rt.errors import SolError, UsageError

if TYPE_CHECKING:
    from sol_rt.bundle.config import SolConfig
    from sol_rt.generate.grammar import Grammar
    from sol_rt.generate.model import SolModel
    from sol_rt.generate.results import Generation
    from sol_rt.generate.trace import Trace

_RATE_SLACK = 0.05
"""Share by which a rate may be missed without a word."""
BUILT_IN_PROMPT = "The most surprising thing about the deep sea is"


def generate(
    model: options.Model = None,
    prompt: options.Prompt = None,
    file: options.File = None,
    chat: Annotated[
        bool,
        options.option("--chat/--no-chat", env=False, help="Put the prompt into the bundle's chat template."),
    ] = False,
    parse_special: Annotated[
        bool,
        options.option(
            "--parse-special/--no-parse-special",
            env=False,
            help="Turn special tokens written in the prompt, such as <|im_end|>, into those tokens.",
        ),
    ] = False,
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
    top_logprobs: Annotated[
        int | None,
        options.option(
            "--top-logprobs",
            env=False,
            min=0,
            max=20,
            help="With --json: number of likeliest tokens to list at each place.",
            panel=options.DECODING,
        ),
    ] = None,
    json_schema: Annotated[
        Path | None,
        options.option(
            "--json-schema",
            env=False,
            help="File with a JSON schema: the text is JSON that is valid under it.",
            panel=options.DECODING,
        ),
    ] = None,
    grammar: Annotated[
        Path | None,
        options.option(
            "--grammar", env=False, help="File with a Lark grammar: the text is of it.", panel=options.DECODING
        ),
    ] = None,
    regex: Annotated[
        str | None,
        options.option(
            "--regex", env=False, help="Regular expression: the whole text matches it.", panel=options.DECODING
        ),
    ] = None,
    budget: options.Budget = None,
    tokens_per_second: options.TokensPerSecond = None,
    governor: options.Governor = False,
    max_loss: options.MaxLoss = None,
    schedule: options.Schedule = None,
    kv_density: options.KvDensity = None,
    channel_density: options.ChannelDensity = None,
    bits: options.Bits = None,
    lossless: options.Lossless = False,
    lookup: options.Lookup = False,
    trace: Annotated[
        Path | None,
        options.option("--trace", env=False, help="JSONL file to write every step to.", panel="Traces"),
    ] = None,
    replay: Annotated[
        Path | None,
        options.option(
            "--replay", env=False, help="Trace to repeat; the first different token is reported.", panel="Traces"
        ),
    ] = None,
    prefill: options.Prefill = None,
    provider: options.Provider = "auto",
    device: options.Device = 0,
    threads: options.Threads = None,
    native_ops: options.NativeOps = True,
    verify: options.Verify = True,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Generate text. The text streams to stdout; budget, speed and the actions taken go to stderr."""
    from sol_rt.cli.loading import PromptBar, dial, load, note_ineffective

    rate, loss = (None, None) if governor else (tokens_per_second, max_loss)  # a governor holds both itself
    arguments: dict[str, Any] = {
        **dial(schedule, budget, rate, kv_density, channel_density, bits, loss),
        **sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed, stop),
        **penalties(presence_penalty, frequency_penalty, logit_bias),
        "max_new_tokens": max_new_tokens,
        "top_logprobs": top_logprobs,
        "trace": trace,
        "parse_special": parse_special,
        "grammar": _grammar(json_schema, grammar, regex),
        "lossless": lossless,
        "lookup": lookup,
    }
    text: Any = None
    if replay is None:
        text = _prompt(prompt, file)
    else:
        # A trace contains its prompt. A prompt that is also given must be equal to it.
        arguments["replay"] = _recorded(replay)
        text = _prompt(prompt, file) if prompt is not None or file is not None else None
    if chat and text is not None:
        text = [{"role": "user", "content": text}]

    sensors = None
    if governor:
        check_governable(arguments, tokens_per_second, max_loss)
        sensors = Sensors()
    settings: dict[str, Any] = {"provider": provider, "threads": threads, "native_ops": native_ops, "device": device}
    loaded = load(model, **settings, ctx_size=ctx_size, prefill=prefill, verify=verify)
    note_ineffective(loaded, arguments)
    mover = None if sensors is None else Governor(loaded, sensors, budget, tokens_per_second, max_loss)
    if mover is not None:
        arguments["budget"] = mover.budget
    bar = PromptBar()
    run = loaded.stream(text, progress=bar, **arguments)
    tokens = bar.answered(run)
    if mover is not None:
        tokens = mover.govern(run, tokens)
    elif rate is not None and replay is None:
        tokens = Rate(rate).follow(run, tokens)
    begun = False
    try:
        for step in tokens:
            if not json:
                print_text(step.text)
                begun = begun or step.text != ""
    except SolError:
        if begun:
            print(flush=True)  # the error has a line of its own
        raise
    except KeyboardInterrupt:
        run.close()
        _finish(run.result, loaded, json, arguments)
        raise
    result = run.result
    assert result is not None  # a generation that ends without an error has a token
    _finish(result, loaded, json, arguments)
    if mover is not None:
        note(mover.told())
    if replay is not None:
        _compare(replay, result)
    if trace is not None:
        note(f"trace: {trace}; sol-rt trace {trace} draws it")


def _finish(result: Generation | None, model: SolModel, json: bool, how: Mapping[str, Any]) -> None:
    """Ends the line of text and reports the result, also after Ctrl-C. `result` is None if there was no token."""
    if not json:
        print(flush=True)
    if result is None:
        return
    if json:
        print_json({**summary(result), **_top_logprobs(result, model), **model.where})
    else:
        report(result, how, model.bundle.config.dense.variant)
        if line := slow_prompt(result, model.bundle.config):
            note(line)


def _top_logprobs(result: Generation, model: SolModel) -> dict[str, Any]:
    """The key `top_logprobs` of `generate --json`: the likeliest tokens at each place; empty if none were asked for."""
    if not any(result.top_logprobs):
        return {}
    text = model.tokenizer.decode
    return {
        "top_logprobs": [
            [
                {"id": token, "token": text([token], skip_special_tokens=False), "logprob": logprob}
                for token, logprob in place
            ]
            for place in result.top_logprobs
        ]
    }


def sampling(
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    repetition_penalty: float | None,
    seed: int | None,
    stop: list[str] | None,
) -> dict[str, Any]:
    """The sampling flags that the user gave, under their Hugging Face names. The bundle's defaults set the others."""
    if stop and "" in stop:
        raise UsageError("--stop '': expected some text")
    given: dict[str, Any] = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
        "stop_strings": stop or None,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if temperature == 0:
        given["do_sample"] = False
    elif given.keys() & {"temperature", "top_k", "top_p", "min_p"}:
        given["do_sample"] = True
    return given


def penalties(presence: float | None, frequency: float | None, logit_bias: list[str] | None) -> dict[str, Any]:
    """The penalties and biases that the user gave, under OpenAI's names."""
    biases = options.logit_biases(logit_bias) if logit_bias else None
    given = {"presence_penalty": presence, "frequency_penalty": frequency, "logit_bias": biases}
    return {name: value for name, value in given.items() if value is not None}


def summary(result: Generation) -> dict[str, Any]:
    """The keys of `generate --json`."""
    fields = asdict(result)
    names = ("text", "tokens", "schedule", "requested_budget", "achieved_budget", "cost_model", "prefill")
    speeds = ("prompt_tokens_per_second", "tokens_per_second", "time_to_first_token_ms")
    bought = ("dense_tokens_per_second", "expected_loss", "floored", "logprobs", "drafted_tokens", "accepted_tokens")
    return {name: fields[name] for name in (*names, *speeds, "actions", "peak_rss_mb", "finish_reason", *bought)}


def report(result: Generation, how: Mapping[str, Any], dense: str) -> None:
    """Prints on stderr what the dial bought, then budget, speed and actions of a generation.

    `how` has the dial's settings, as `loading.dial` returns them; `dense` is the key of the dense variant.
    """
    note(bought(result, how, dense))
    report_figures(result)


def report_figures(result: Generation) -> None:
    """Prints on stderr budget, speed and actions of a generation."""
    from sol_rt.budget.cost.model import in_unit

    floored = "; the bundle's cheapest action costs more than the requested budget" if _overspent(result) else ""
    note(
        f"budget: requested {result.requested_budget:.3f}, achieved {result.achieved_budget:.3f} of dense, "
        f"{in_unit(result.cost_model)} ({result.schedule}){floored}"
    )
    note(
        f"speed: {result.tokens_per_second:.1f} tokens/s, prompt {result.prompt_tokens_per_second:.1f} tokens/s, "
        f"first token after {result.time_to_first_token_ms:.0f} ms, peak memory {result.peak_rss_mb:.0f} MB"
    )
    if result.drafted_tokens:
        note(f"drafts: {result.accepted_tokens} of {result.drafted_tokens} tokens accepted")
    steps = sum(result.actions.values())
    for tag, count in sorted(result.actions.items(), key=lambda item: -item[1]):
        note(f"  {tag}  {count:5}  {100 * count / steps:3.0f}%")


def bought(result: Generation, how: Mapping[str, Any], dense: str) -> str:
    """One line on what the dial bought: speed against dense, and the loss that the export measured.

    A prompt that another variant than `dense` ran is told of.
    """
    from sol_rt.budget.losses import share_of_nats

    if not result.actions:
        return f"dial: {_asked(result, how)}: no decode step ran"
    line = f"dial: {_asked(result, how)}: {result.tokens_per_second:.1f} tokens/s"
    if result.achieved_budget != 1.0:
        unit = "bytes" if result.cost_model == "bytes" else "its measured time"
        line += f", dense about {result.dense_tokens_per_second:.1f} by {unit}"
    if result.prefill != dense:
        line += f"; prompt by {result.prefill}"
    if result.expected_loss is None:
        return f"{line}; the loss was not measured"
    return f"{line}; expected perplexity {share_of_nats(max(result.expected_loss, 0.0)):.1%} over dense"


def _asked(result: Generation, how: Mapping[str, Any]) -> str:
    """Describes the user's request to the dial, and the substitute if the request could not be reached."""
    from sol_rt.budget.dial import DEFAULT_MAX_LOSS

    if how.get("replay") is not None:
        return "the trace's actions"
    if wanted := how.get("tokens_per_second"):
        return f"{wanted:g} tokens/s{_missed(wanted, result)}"
    if how.get("max_loss") is not None:
        return f"perplexity at most {100 * how['max_loss']:g}% over dense"
    given = [name for name in ("budget", "kv_density", "channel_density", "bits") if how.get(name) is not None]
    if given:
        served = f", served at {result.achieved_budget:.2f} by the cheapest action" if result.floored else ""
        return ", ".join(f"{name.replace('_', ' ')} {how[name]:g}" for name in given) + served
    if result.schedule == "dense" or result.schedule.startswith("fixed:"):
        return result.schedule
    if result.requested_budget == 1.0:
        return "none given, so dense"
    return f"none given, so the fastest mix that loses at most {100 * DEFAULT_MAX_LOSS:g}%"


def _overspent(result: Generation) -> bool:
    """True if the cheapest action, which served in place of the budget, cost visibly more."""
    return result.floored and result.achieved_budget > result.requested_budget + 0.005


def _missed(wanted: float, result: Generation) -> str:
    """Reason why a generation was slower than the rate that was asked for; empty where it was not."""
    missed = 1 - result.tokens_per_second / wanted
    if missed <= _RATE_SLACK or not result.tokens_per_second:  # without a decode step there is no rate
        return ""
    why = " with the cheapest action" if _overspent(result) else ": slower than measured (sol-rt profile)"
    return f", missed by {missed:.0%}{why}"


def slow_prompt(result: Generation, config: SolConfig) -> str:
    """A line on a faster variant for prompts, where the prompt took over 2 seconds and longer than the answer.

    Empty otherwise, and where another variant than the dense one ran the prompt. Also empty if the bundle has no
    cheaper variant of all channels and 4 bits or more.
    """
    from sol_rt.cli.loading import PROMPT_SECONDS

    read, steps = result.prompt_tokens - result.cached_tokens, sum(result.actions.values())
    took = read / result.prompt_tokens_per_second if result.prompt_tokens_per_second else 0.0
    answer = steps / result.tokens_per_second if result.tokens_per_second else 0.0
    dense = config.variants[config.dense.variant]
    faster = {
        key: variant.weight_bytes
        for key, variant in config.variants.items()
        if variant.weight_bytes < dense.weight_bytes and variant.channel_density == 1.0 and variant.bits >= 4
    }
    if took <= max(PROMPT_SECONDS, answer) or result.prefill != config.dense.variant or not faster:
        return ""
    variant = min(faster, key=lambda key: faster[key])
    return f"prompt: took {took:.0f} s, longer than the answer; --prefill {variant} reads it faster, at some loss"


def _prompt(prompt: str | None, file: Path | None) -> str:
    """The prompt from -p, -f or a pipe, or else the built-in one. The last newline of a file or pipe is dropped."""
    from sol_rt.cli.loading import read_text

    if prompt is not None and file is not None:
        raise UsageError("--prompt and --file both give a prompt; give one")
    if prompt is not None:
        text = prompt
    elif file is not None:
        text = read_text(file).removesuffix("\n")
    elif _is_device(sys.stdin):
        note(f"prompt: {BUILT_IN_PROMPT!r} (built in; -p sets another)")
        return BUILT_IN_PROMPT
    else:
        text = read_text(Path("-")).removesuffix("\n")
        if not text:
            raise UsageError("stdin: the prompt is empty; give some text there, with -p or with -f")
    if not text:
        raise UsageError("the prompt is empty; give some text with -p or -f")
    return text


def _grammar(json_schema: Path | None, lark: Path | None, regex: str | None) -> Grammar | None:
    """The grammar of the text; None where no flag gives one."""
    from sol_rt.cli.loading import read_text
    from sol_rt.generate.grammar import Grammar

    if sum(given is not None for given in (json_schema, lark, regex)) > 1:
        raise UsageError("--json-schema, --grammar and --regex each say what the text has to be; give one")
    if json_schema is not None:
        return Grammar.json_schema(read_text(json_schema))
    if lark is not None:
        return Grammar.lark(read_text(lark))
    return None if regex is None else Grammar.regex(regex)


def _is_device(stream: TextIO) -> bool:
    """Returns whether a stream reads a terminal or another character device, such as /dev/null."""
    try:
        return stat.S_ISCHR(os.fstat(stream.fileno()).st_mode)
    except OSError:  # a stream in memory
        return stream.isatty()


def _recorded(file: Path) -> Trace:
    from sol_rt.generate.trace import read_trace

    return read_trace(file)


def _compare(file: Path, result: Generation) -> None:
    """Notes that a replay gave the trace's tokens. Raises SolError if a token differs."""
    if result.first_difference is not None:
        raise SolError(f"replay {file}: token {result.first_difference} differs from the recorded one")
    note(f"replay: all {len(result.tokens)} tokens are the recorded ones")
