"""Arguments of the call behind a command, for each option of the command line and the variable that mirrors it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from helpers.tiny_bundle import write_bundle
from sol_rt.bundle.bits import MIXED, THREE
from sol_rt.bundle.bundle import Bundle
from sol_rt.cli import loading, main
from sol_rt.cli.app import make_app
from sol_rt.engine.hardware import allowed_cores
from sol_rt.errors import UsageError
from sol_rt.generate.model import SolModel

Call = dict[str, Any]
Rows = list[tuple[str, Call]]

TARGETS = {
    "generate": "sol_rt.generate.model.SolModel.stream",
    "chat": "sol_rt.generate.model.SolModel.stream",
    "perplexity": "sol_rt.evaluation.quality.perplexity.perplexity",
    "export": "sol_rt.export.export_bundle",
}
"""Function that each command calls. Its last positional argument is `asked` below."""
REQUIRED = {
    "generate": "-p a",
    "chat": "-p a",
    "perplexity": "-f text",
    "export": "-m checkpoint -o out",
    "bench": "-p 8",
    "eval": "-f text",
}

ASKED = {"role": "user", "content": "a"}
SYSTEM = {"role": "system", "content": "brief"}
DIAL_NAMES = ("schedule", "budget", "tokens_per_second", "max_loss", "kv_density", "channel_density", "bits")
NO_DIAL = dict.fromkeys(DIAL_NAMES)
NO_DRAFTS = {"lossless": False, "lookup": False}
DEFAULTS: dict[str, Call] = {
    "generate": {
        **NO_DIAL,
        "asked": "a",
        "max_new_tokens": None,
        "top_logprobs": None,
        "trace": None,
        "parse_special": False,
        "grammar": None,
        **NO_DRAFTS,
    },
    "chat": {**NO_DIAL, **NO_DRAFTS, "asked": [ASKED]},
    "perplexity": {**NO_DIAL, "asked": "a text", "size": 512, "chunks": None, "seed": None},
    "export": {
        "asked": Path("out"),
        "bits": (8, 6, MIXED, 4, THREE),
        "channel_density": (1.0, 0.75, 0.62, 0.5, 0.4),
        "kv_density": (1.0, 0.5, 0.25, 0.1),
        "max_context": None,
        "policy": None,
        "kv": "float16",
        "calibration": None,
        "save_calibration": None,
        "max_actions": None,
        "parity": True,
        "trust_remote_code": False,
    },
}
CALLBACKS = {"progress", "say"}

DIAL: Rows = [
    ("-b 0.4", {"budget": 0.4}),
    ("--budget 0.4", {"budget": 0.4}),
    ("--tokens-per-second 30", {"tokens_per_second": 30.0}),
    ("--max-loss 1%", {"max_loss": 0.01}),
    ("--max-loss 0.02", {"max_loss": 0.02}),
    ("--schedule uniform", {"schedule": "uniform"}),
    ("-s 11", {"seed": 11}),
    ("--seed 11", {"seed": 11}),
]
AXES: Rows = [
    ("--kv-density 0.3", {"kv_density": 0.3}),
    ("--channel-density 0.6", {"channel_density": 0.6}),
    ("--bits 5.5", {"bits": 5.5}),
]
DRAFTS: Rows = [("--lossless", {"lossless": True}), ("--lookup", {"lookup": True})]
SAMPLING: Rows = [
    ("-n 9", {"max_new_tokens": 9}),
    ("--max-new-tokens 9", {"max_new_tokens": 9}),
    ("--max-tokens 9", {"max_new_tokens": 9}),
    ("--temperature 0.8", {"temperature": 0.8, "do_sample": True}),
    ("--temp 0", {"temperature": 0.0, "do_sample": False}),
    ("--top-k 7", {"top_k": 7, "do_sample": True}),
    ("--top-p 0.6", {"top_p": 0.6, "do_sample": True}),
    ("--min-p 0.2", {"min_p": 0.2, "do_sample": True}),
    ("--temperature 0 --top-k 7", {"temperature": 0.0, "top_k": 7, "do_sample": False}),
    ("--repetition-penalty 1.3", {"repetition_penalty": 1.3}),
    ("--repeat-penalty 1.3", {"repetition_penalty": 1.3}),
    ("--presence-penalty 0.5", {"presence_penalty": 0.5}),
    ("--frequency-penalty -0.5", {"frequency_penalty": -0.5}),
    ("--logit-bias 5=-3 --logit-bias 6+2", {"logit_bias": {5: -3.0, 6: 2.0}}),
    ("--stop x --stop y", {"stop_strings": ["x", "y"]}),
]
OPTIONS: dict[str, Rows] = {
    "generate": [
        ("", {}),
        ("--prompt b", {"asked": "b"}),
        ("--chat", {"asked": [ASKED]}),
        ("--parse-special", {"parse_special": True}),
        ("--top-logprobs 3", {"top_logprobs": 3}),
        ("--trace t.jsonl", {"trace": Path("t.jsonl")}),
        *DRAFTS,
        *SAMPLING,
        *DIAL,
        *AXES,
    ],
    "chat": [
        ("", {}),
        ("--prompt b", {"asked": [{**ASKED, "content": "b"}]}),
        ("--system brief", {"asked": [SYSTEM, ASKED]}),
        *DRAFTS,
        *SAMPLING,
        *DIAL,
    ],
    "perplexity": [
        ("", {}),
        ("--file other", {"asked": "another text"}),
        ("-c 64", {"size": 64}),
        ("--ctx-size 64", {"size": 64}),
        ("--chunks 3", {"chunks": 3}),
        *DIAL,
        *AXES,
    ],
    "export": [
        ("", {}),
        ("--output other-out", {"asked": Path("other-out")}),
        ("--bits 4,8,mixed", {"bits": (8, MIXED, 4)}),
        ("--channel-density 0.5,1", {"channel_density": (1.0, 0.5)}),
        ("--kv-density 0.25,1", {"kv_density": (1.0, 0.25)}),
        ("-c 64", {"max_context": 64}),
        ("--ctx-size 64", {"max_context": 64}),
        ("--policy p.safetensors", {"policy": Path("p.safetensors")}),
        ("--policy none", {"policy": "none"}),
        ("--kv int8", {"kv": "int8"}),
        ("--calibration full", {"calibration": "full"}),
        ("--save-calibration c.json", {"save_calibration": Path("c.json")}),
        ("--max-actions 8", {"max_actions": 8}),
        ("--no-parity", {"parity": False}),
        ("--trust-remote-code", {"trust_remote_code": True}),
    ],
}
MIRRORED = {
    "SOL_RT_BITS": "--bits",
    "SOL_RT_BUDGET": "--budget",
    "SOL_RT_CHANNEL_DENSITY": "--channel-density",
    "SOL_RT_FREQUENCY_PENALTY": "--frequency-penalty",
    "SOL_RT_KV_DENSITY": "--kv-density",
    "SOL_RT_MAX_LOSS": "--max-loss",
    "SOL_RT_MAX_NEW_TOKENS": "--max-new-tokens",
    "SOL_RT_MIN_P": "--min-p",
    "SOL_RT_PRESENCE_PENALTY": "--presence-penalty",
    "SOL_RT_REPETITION_PENALTY": "--repetition-penalty",
    "SOL_RT_SCHEDULE": "--schedule",
    "SOL_RT_SEED": "--seed",
    "SOL_RT_SYSTEM": "--system",
    "SOL_RT_TEMPERATURE": "--temperature",
    "SOL_RT_TOKENS_PER_SECOND": "--tokens-per-second",
    "SOL_RT_TOP_K": "--top-k",
    "SOL_RT_TOP_P": "--top-p",
}
"""Variable to the option above that it sets; export reads none of them."""

THREADS = len(allowed_cores())
LOADED: Call = {
    "provider": "auto",
    "threads": None,
    "native_ops": True,
    "device": 0,
    "max_context": None,
    "prefill": None,
    "verify": True,
}
MACHINE: list[tuple[str, str, Call]] = [
    ("", "", {}),
    ("--provider cpu", "SOL_RT_PROVIDER=cpu", {"provider": "cpu"}),
    ("--device 2", "SOL_RT_DEVICE=2", {"device": 2}),
    (f"-t {THREADS}", f"SOL_RT_THREADS={THREADS}", {"threads": THREADS}),
    (f"--threads {THREADS}", "", {"threads": THREADS}),
    ("--no-native-ops", "SOL_RT_NATIVE_OPS=0", {"native_ops": False}),
    ("--no-verify", "SOL_RT_VERIFY=0", {"verify": False}),
]
CONTEXT: list[tuple[str, str, Call]] = [
    ("-c 64", "SOL_RT_CTX_SIZE=64", {"max_context": 64}),
    ("--ctx-size 64", "", {"max_context": 64}),
]
PREFILL = [("--prefill s100-q4", "SOL_RT_PREFILL=s100-q4", {"prefill": "s100-q4"})]
OF_LOADING = {
    "eval": MACHINE,
    **dict.fromkeys(("perplexity", "bench"), MACHINE + PREFILL),
    **dict.fromkeys(("generate", "chat"), MACHINE + CONTEXT + PREFILL),
}
ELSEWHERE = {
    "generate": {
        *("-m", "--model", "-f", "--file", "--replay", "--json", "--debug", "SOL_RT_DEBUG"),
        *("--governor", "SOL_RT_GOVERNOR", "--json-schema", "--grammar", "--regex"),
    },
    "chat": {"-m", "--model", "--governor", "SOL_RT_GOVERNOR", "--debug", "SOL_RT_DEBUG"},
    "perplexity": {"-m", "--model", "-o", "--output-format", "--json", "--debug", "SOL_RT_DEBUG"},
    "export": {"--model", "--force", "--target", "--debug", "SOL_RT_DEBUG"},
}
"""Options that other files test: test_cli.py, test_cli_bundle.py, test_governed.py, test_generate_grammar.py,
test_web_bundle.py."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnx", reason="writing a bundle comes with the extra export")
    return write_bundle(tmp_path_factory.mktemp("options") / "tiny")


@pytest.fixture(scope="module")
def model(bundle: Path) -> SolModel:
    return SolModel.from_pretrained(bundle, measure_costs=False)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty home, the tiny bundle as the default model, and two texts in the current folder."""
    for name in list(os.environ):
        if name.startswith("SOL_RT_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SOL_RT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SOL_RT_MODEL", str(bundle))
    monkeypatch.chdir(tmp_path)
    Path("text").write_text("a text", encoding="utf-8")
    Path("other").write_text("another text", encoding="utf-8")
    Path("checkpoint").mkdir()


CallOf = Callable[[str, str, str], Call]


@pytest.fixture
def call_of(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CallOf:
    """Runs a command with options until it calls `target`, and returns the call's keywords and what is `asked`."""

    def run(command: str, options: str, target: str) -> Call:
        seen: list[Call] = []

        def record(*given: Any, **named: Any) -> None:
            seen.append({"asked": given[-1], **named})
            raise UsageError("seen")

        monkeypatch.setattr(target, record)
        assert main([command, *REQUIRED[command].split(), *options.split()]) == 2
        assert capsys.readouterr().err.splitlines()[-1] == "sol-rt: error: seen"
        (found,) = seen
        return found

    return run


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, model: SolModel) -> None:
    """Commands get a model that is open already."""
    monkeypatch.setattr(loading, "load", lambda *_, **__: model)


def cases(tables: dict[str, list[Any]]) -> list[Any]:
    """The rows of every command's table, each after the command."""
    return [
        pytest.param(command, *row, id=" ".join([command, *map(str, row[:-1])]))
        for command, table in tables.items()
        for row in table
    ]


def mirrored(command: str) -> list[tuple[str, str, Call]]:
    """Variables of a command, each with a value and what it changes: options above that are a flag and its value."""
    flags = {flag: variable for variable, flag in MIRRORED.items()}
    given = [(*options.rpartition(" ")[::2], expected) for options, expected in OPTIONS[command]]
    return [(flags[flag], value, expected) for flag, value, expected in given if flag in flags]


def assert_asks(call_of: CallOf, command: str, options: str, expected: Call) -> None:
    found = call_of(command, options, TARGETS[command])
    assert {name: found[name] for name in found.keys() - CALLBACKS} == {**DEFAULTS[command], **expected}


@pytest.mark.usefixtures("opened")
@pytest.mark.parametrize(("command", "options", "expected"), cases(OPTIONS))
def test_an_option_becomes_an_argument(call_of: CallOf, command: str, options: str, expected: Call) -> None:
    if command == "export":
        pytest.importorskip("torch", reason="exporting comes with the extra export")
    assert_asks(call_of, command, options, expected)


@pytest.mark.usefixtures("opened")
@pytest.mark.parametrize(
    ("command", "variable", "value", "expected"),
    cases({command: mirrored(command) for command in ("generate", "chat", "perplexity")}),
)
def test_a_variable_sets_the_option(
    call_of: CallOf, monkeypatch: pytest.MonkeyPatch, command: str, variable: str, value: str, expected: Call
) -> None:
    monkeypatch.setenv(variable, value)
    assert_asks(call_of, command, "", expected)


@pytest.mark.parametrize(("command", "options", "variable", "expected"), cases(OF_LOADING))
def test_options_of_loading_reach_the_model(
    call_of: CallOf, monkeypatch: pytest.MonkeyPatch, command: str, options: str, variable: str, expected: Call
) -> None:
    check, verified = loading.open_checked, []

    def checked(path: Path, *, verify: bool) -> Bundle:
        verified.append(verify)
        return check(path, verify=verify)

    monkeypatch.setattr(loading, "open_checked", checked)
    target = "sol_rt.generate.model.SolModel.from_pretrained"
    wanted = {**LOADED, "measure_costs": command not in {"perplexity", "eval"}, **expected}
    found = call_of(command, options, target)
    assert {**found, "verify": verified.pop()} == {**wanted, "asked": found["asked"]}
    if variable:
        monkeypatch.setenv(*variable.split("="))
        found = call_of(command, "", target)
        assert {**found, "verify": verified.pop()} == {**wanted, "asked": found["asked"]}


@pytest.mark.parametrize("command", TARGETS)
def test_every_option_and_variable_is_in_a_table(command: str) -> None:
    group: Any = typer.main.get_command(make_app([command]))
    options = [each for each in group.commands[command].params if each.param_type_name == "option"]
    loading_rows = OF_LOADING.get(command, [])
    words = " ".join([REQUIRED[command], *(row[0] for row in [*OPTIONS[command], *loading_rows])]).split()
    variables = {variable for variable, flag in MIRRORED.items() if flag in words}
    variables |= {variable.partition("=")[0] for _, variable, _ in loading_rows}
    left = {name for each in options for name in each.opts if not {name, *each.secondary_opts} & {*words}}
    left |= {each.envvar for each in options if each.envvar} - variables
    assert left == ELSEWHERE[command]
