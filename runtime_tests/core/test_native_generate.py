"""`NativeModel` and `sol-rt generate --engine native` beside the Python engine."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from signal import SIGINT
from typing import Any

import pytest

import sol_rt.ops
from helpers.places import TINY
from helpers.program import started
from helpers.tiny_bundle import seal
from sol_rt.budget.cost.cost_table import CostTable, MeasuredCost
from sol_rt.budget.cost.tune import candidates
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import CONFIG_NAME
from sol_rt.engine.hardware import tuning as operators
from sol_rt.errors import BundleError, BusyError, ContextError, ProviderError, QualityWarning, SolError, UsageError
from sol_rt.generate.model import SolModel
from sol_rt.generate.native import library
from sol_rt.generate.native.model import NativeModel
from sol_rt.generate.native.stream import NativeStream
from sol_rt.generate.trace import read_trace
from sol_rt.store.home import costs_dir
from sol_rt.store.verified import check_weights

GOLDEN = TINY
PROMPT = [368, 14, 279, 363, 264, 345]
SAMPLED: dict[str, Any] = {"do_sample": True, "seed": 3, "temperature": 0.9, "top_p": 0.95, "repetition_penalty": 1.1}


@pytest.fixture(scope="module", autouse=True)
def _library() -> None:
    if sol_rt.ops.core_path() is None:
        pytest.skip("the package was installed without the native core")


@pytest.fixture(scope="module")
def python(_library: None) -> SolModel:
    return SolModel.from_pretrained(GOLDEN, provider="cpu", measure_costs=False)


@pytest.fixture(scope="module")
def native(_library: None) -> NativeModel:
    return NativeModel.from_pretrained(GOLDEN, measure_costs=False)


def finished(stream: Any) -> Any:
    for _ in stream:
        pass
    return stream.result


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"budget": 0.6},
        {"max_loss": 0.05},
        {"schedule": "fixed:k030-s060-q4"},
        {"kv_density": 0.5, "bits": 6},
        {"budget": 0.7, "schedule": "random", **SAMPLED},
        {"budget": 0.5, "top_logprobs": 3, "logit_bias": {340: 4, 16: -3}, "frequency_penalty": 0.4},
        {"stop_strings": ["cat", "lamp"], "eos_token_id": []},
        {"budget": 0.01},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore::sol_rt.errors.QualityWarning")
def test_results_are_those_of_python(python: SolModel, native: NativeModel, arguments: dict[str, Any]) -> None:
    settings = {"max_new_tokens": 40, **arguments}
    expected, found = finished(python.stream(PROMPT, **settings)), finished(native.stream(PROMPT, **settings))
    for name in ("text", "tokens", "schedule", "cost_model", "prefill", "actions", "finish_reason", "floored"):
        assert getattr(found, name) == getattr(expected, name), name
    for name in ("requested_budget", "achieved_budget", "expected_loss"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-9), name
    assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-3)
    assert [[token for token, _ in place] for place in found.top_logprobs] == [
        [token for token, _ in place] for place in expected.top_logprobs
    ]


@pytest.mark.parametrize(
    "prompt",
    [
        "Ben and the cat",
        [{"role": "user", "content": "Where is Ben? <|im_end|>"}],
        [{"role": "narrator", "content": "Ben is here."}],  # which the core alone does not know
    ],
    ids=str,
)
def test_prompts_are_those_of_python(python: SolModel, native: NativeModel, prompt: Any) -> None:
    expected, found = (finished(model.stream(prompt, max_new_tokens=12, budget=1.0)) for model in (python, native))
    assert (found.prompt_tokens, found.tokens, found.text) == (expected.prompt_tokens, expected.tokens, expected.text)


def test_a_seed_gives_the_same_text_after_a_rewind(python: SolModel, native: NativeModel) -> None:
    settings = {"do_sample": True, "temperature": 1.5, "top_k": 0, "seed": 11, "schedule": "dense", "eos_token_id": []}
    whole = finished(native.stream(PROMPT, max_new_tokens=40, **settings)).tokens
    for kept in (0, 1, 17, 39):
        for model in (native, python):
            stream = model.stream([*PROMPT, *whole[:kept]], max_new_tokens=40 - kept, reuse_cache=True, **settings)
            assert finished(stream).tokens == whole[kept:]


def test_traces_are_read_and_repeated_by_both(python: SolModel, native: NativeModel, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "native.jsonl", tmp_path / "python.jsonl"
    settings = {"budget": 0.6, "max_new_tokens": 30, **SAMPLED}
    finished(native.stream("Ben and the cat", trace=ours, **settings))
    finished(python.stream("Ben and the cat", trace=theirs, **settings))
    lines = [[json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] for path in (ours, theirs)]
    assert lines[0][0] == lines[1][0]
    assert list(lines[0][0]) == list(lines[1][0])
    for found, expected in zip(*(each[1:] for each in lines), strict=True):
        assert list(found) == list(expected)
        for name in ("step", "token", "text", "action", "context"):
            assert found[name] == expected[name]
        for name in ("cost", "relative_cost", "achieved"):
            assert found[name] == pytest.approx(expected[name], rel=1e-9)
    assert finished(python.stream(replay=read_trace(ours))).first_difference is None
    assert finished(native.stream(replay=theirs)).first_difference is None


@pytest.mark.parametrize("name", [CONFIG_NAME, "tokenizer.json", "weights.bin"])
@pytest.mark.parametrize("way", ["itself", "symlink", "hardlink"])
def test_a_trace_overwrites_no_file_of_the_bundle(tmp_path: Path, name: str, way: str) -> None:
    folder = tmp_path / "tiny"
    shutil.copytree(GOLDEN, folder)
    before, path = (folder / name).read_bytes(), tmp_path / "trace.jsonl"
    if way == "itself":
        path = folder / ".." / "tiny" / name
    elif way == "symlink":
        path.symlink_to(folder / name)
    else:
        path.hardlink_to(folder / name)
    for model in (
        SolModel.from_pretrained(folder, provider="cpu", measure_costs=False),
        NativeModel.from_pretrained(folder, measure_costs=False),
    ):
        with pytest.raises(UsageError, match=f"trace .*: got {name} of the bundle .*; choose another file"):
            finished(model.stream(PROMPT, trace=path, max_new_tokens=2))
    assert (folder / name).read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "", "line 1 is not a trace's header; give a file that `--trace` wrote"),
        (lambda text: text.replace('"format_version": 1', '"format_version": 7', 1), "format version 7, expected 1"),
        (lambda text: text.replace('"prompt":', '"promt":', 1), "line 1: no key 'prompt'; record the run again"),
        (lambda text: text.replace('"step": 2', '"step": 3', 1), "line 4: step 3, expected 2; record the run again"),
        (lambda text: text.replace('"step": 2', '"step": true', 1), "line 4: step: got True, which has the wrong type"),
        (lambda text: text.replace('"step": 2', '"steps": 2', 1), "line 4: no key 'step'"),
        (lambda text: text[:-20], "is cut off; remove the line to use the rest"),
        (lambda text: text.replace('"k100-s100-q8"', '"k100-s1000-q8"'), "line 3: "),
        (lambda text: text.replace('"token": ', '"token": -', 2), "expected numbers from 0"),
        (lambda text: text + "[" * 1000000 + "]" * 1000000 + "\n", " is not a record; record the run again"),
        (lambda text: text + '{"a":' * 300000 + "1" + "}" * 300000 + "\n", " is not a record; record the run again"),
    ],
)
def test_damaged_traces_are_refused_in_the_words_of_python(
    python: SolModel, native: NativeModel, tmp_path: Path, change: Any, message: str
) -> None:
    path = tmp_path / "trace.jsonl"
    finished(python.stream(PROMPT, trace=path, schedule="dense", max_new_tokens=5))
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(SolError) as expected:
        read_trace(path)
    with pytest.raises(SolError) as found:
        native.stream(replay=path)
    assert str(found.value) == str(expected.value)
    assert message in str(found.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:1], "replay: got a trace without tokens, expected one at least; record the run again"),
        (lambda lines: [{**lines[0], "bundle": "A" * 5000, "config_sha256": "0"}, *lines[1:]], "A…); name that one"),
        (lambda lines: [*lines[:3], {**lines[3], "token": 10**6}], "replay: got token 1000000 at step 2 of the trace"),
        (lambda lines: [*lines[:3], {**lines[3], "token": 2**31}], "token 2147483648, context "),
        (lambda lines: [*lines[:3], {**lines[3], "token": -1}], "token -1, context "),
        (lambda lines: [*lines[:3], {**lines[3], "token": 10**70}], "token: got "),
        (lambda lines: [*lines[:3], {**lines[3], "action": None}], "line 4: no action at step 2"),
        (lambda lines: [*lines[:3], {**lines[3], "action": "k100-s100-q7"}], "replay: k100-s100-q7 is in the trace"),
        (lambda lines: [{**lines[0], "prompt_tokens": [1, 10**6]}, *lines[1:]], "replay: prompt: got token 1000000 at"),
        (lambda lines: [{**lines[0], "prompt_tokens": [-1]}, *lines[1:]], "line 1: prompt_tokens are not token ids"),
        (
            lambda lines: [{**lines[0], "schedule": "\x1b[31m"}, *lines[1:]],
            "schedule: got '\\x1b[31m', expected a name",
        ),
        (
            lambda lines: [{**lines[0], "cost_model": "c" * 201}, *lines[1:]],
            "c…, expected a name of 1 to 200 printable",
        ),
    ],
)
def test_traces_that_do_not_fit_are_refused_by_both(
    python: SolModel, native: NativeModel, tmp_path: Path, change: Any, message: str
) -> None:
    path = tmp_path / "trace.jsonl"
    finished(python.stream(PROMPT, trace=path, schedule="dense", max_new_tokens=5))
    lines = change([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()])
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    for replay in (lambda: python.stream(replay=read_trace(path)), lambda: native.stream(replay=path)):
        with pytest.raises(SolError) as refused:
            finished(replay())
        assert message in str(refused.value)
        assert len(str(refused.value)) < 400


@pytest.mark.parametrize("missing", [0, 1, 40])
def test_a_replay_that_is_longer_than_the_context_is_refused_by_both(
    python: SolModel, tmp_path: Path, missing: int
) -> None:
    """With 40 tokens missing, the prompt alone has too many."""
    path = tmp_path / "trace.jsonl"
    finished(python.stream(PROMPT, trace=path, max_new_tokens=40, eos_token_id=[]))
    needed = len(PROMPT) + 39
    settings: dict[str, Any] = {"max_context": needed - missing, "measure_costs": False}
    ours = SolModel.from_pretrained(GOLDEN, provider="cpu", **settings)
    theirs = NativeModel.from_pretrained(GOLDEN, **settings)
    if missing == 0:
        assert finished(theirs.stream(replay=path)).first_difference is None
        return
    with pytest.raises(ContextError, match=f"replay: got a trace of {needed} tokens, expected at most ") as expected:
        ours.stream(replay=read_trace(path))
    with pytest.raises(ContextError) as found:
        theirs.stream(replay=path)
    assert str(found.value) == str(expected.value)


def test_the_cache_is_used_again(native: NativeModel) -> None:
    first = finished(native.stream(PROMPT, max_new_tokens=8, eos_token_id=[]))
    longer = [*PROMPT, *first.tokens]
    assert finished(native.stream(longer, max_new_tokens=2, reuse_cache=True)).cached_tokens == len(longer) - 1
    assert finished(native.stream(longer, max_new_tokens=2)).cached_tokens == 0
    assert native.private_bytes > 0


def test_a_trace_of_a_loss_names_the_budget_that_it_comes_to(
    python: SolModel, native: NativeModel, tmp_path: Path
) -> None:
    budgets = []
    for place, model in enumerate((python, native)):
        finished(model.stream(PROMPT, max_loss=0.02, max_new_tokens=4, trace=tmp_path / f"{place}.jsonl"))
        budgets.append(read_trace(tmp_path / f"{place}.jsonl").header.budget)
    assert budgets[1] == pytest.approx(budgets[0], rel=1e-9)
    assert budgets[0] is not None
    assert budgets[0] < 1


def test_a_moved_budget_holds_as_in_python(python: SolModel, native: NativeModel) -> None:
    found = []
    for model in (python, native):
        stream = model.stream(PROMPT, budget=1.0, schedule="hull", max_new_tokens=120, eos_token_id=[])
        for index, _ in enumerate(stream, 1):
            if index in (20, 70):
                stream.budget = {20: 0.5, 70: 0.8}[index]
        found.append(stream.result)
    assert found[0].tokens == found[1].tokens
    assert found[0].actions == found[1].actions
    assert found[0].requested_budget == pytest.approx(found[1].requested_budget, rel=1e-9)


_WIDE = """
import sys
from pathlib import Path
from sol_rt.errors import SolError
from sol_rt.generate.native.model import NativeModel
try:
    list(NativeModel.from_pretrained(sys.argv[1], measure_costs=False).stream([3, 4], presence_penalty=1.0))
except SolError as error:
    print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0], error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_penalties_of_a_vocabulary_that_no_graph_has_take_no_memory(tmp_path: Path) -> None:
    """The config alone says that the penalties are 1 GB."""
    edited = shutil.copytree(GOLDEN, tmp_path / "edited")
    config = json.loads((edited / CONFIG_NAME).read_text(encoding="utf-8"))
    config["model"]["vocab_size"], config["policy"] = 1 << 28, None
    del config["weights"]["tensors"]["embed.scale"]  # its shape repeats the size
    (edited / CONFIG_NAME).write_text(json.dumps(config), encoding="utf-8")
    done = subprocess.run([sys.executable, "-c", _WIDE, edited], capture_output=True, text=True, check=True)
    peak, _, error = done.stdout.partition(" ")
    assert str(edited) in error
    assert int(peak) < 500_000  # kB


def test_a_newer_stream_ends_an_older_one(native: NativeModel) -> None:
    older = native.stream(PROMPT, max_new_tokens=5)
    next(older)
    newer = native.stream(PROMPT, max_new_tokens=5)
    with pytest.raises(BusyError, match="interrupted by another one"):
        next(older)
    with pytest.raises(BusyError, match="interrupted by another one"):
        older.budget = 0.5
    assert len(finished(newer).tokens) == 5
    newest = native.stream(PROMPT, max_new_tokens=5)
    for change in ("budget", "tokens_per_second"):
        with pytest.raises(UsageError, match="no generation is running"):
            setattr(newer, change, 0.5)
    newest.close()
    stream = native.stream(PROMPT, max_new_tokens=5)
    next(stream)
    stream.close()
    assert stream.result is not None
    assert stream.result.finish_reason == "closed"


@pytest.mark.parametrize(
    ("error", "message", "prompt", "arguments"),
    [
        (UsageError, "temperature: got -1", PROMPT, {"temperature": -1}),
        (UsageError, "--budget: got 1.5", PROMPT, {"budget": 1.5}),
        (UsageError, "contradict", PROMPT, {"budget": 0.5, "max_loss": 0.1}),
        (UsageError, "an empty one", [], {}),
        (UsageError, "token 384 at place 0", [384], {}),
        (UsageError, "logit bias: got token 384", PROMPT, {"logit_bias": {384: 1}}),
        (UsageError, "temprature", PROMPT, {"temprature": 1}),
        (ContextError, "prompt: got 900 tokens, expected at most 768", [5] * 900, {}),
        (SolError, "No such file or directory; choose another file", PROMPT, {"trace": "/nowhere/trace.jsonl"}),
    ],
)
def test_wrong_calls_raise_what_python_raises(
    native: NativeModel, error: type[SolError], message: str, prompt: Any, arguments: dict[str, Any]
) -> None:
    with pytest.raises(error) as found:
        native.stream(prompt, **arguments)
    assert message in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    "arguments",
    [
        *({name: value} for name in ("budget", "tokens_per_second", "max_loss", "bits") for value in ("x", 10**400)),
        *({name: math.nan} for name in ("budget", "tokens_per_second", "max_loss", "kv_density")),
        {"reuse_cache": "x"},
        {"parse_special": "no"},
        {"trace": 3},
        {"trace": "a\0b"},
        {"trace": "\ud800"},
        {"schedule": "dense\0b"},
    ],
    ids=lambda arguments: str(arguments)[:40],
)
def test_arguments_of_another_kind_are_refused_by_both(
    python: SolModel, native: NativeModel, arguments: dict[str, Any]
) -> None:
    for model in (python, native):
        with pytest.raises(UsageError, match=f"^(--)?{next(iter(arguments)).replace('_', '[-_]')}") as found:
            finished(model.stream(PROMPT, max_new_tokens=2, **arguments))
        assert str(found.value).isprintable()


def test_values_that_only_the_core_cannot_take_are_refused(native: NativeModel) -> None:
    for name in ("a\0b", "\ud800", 3):
        with pytest.raises(UsageError, match="that `--trace` wrote"):
            native.stream(replay=name)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"stop_strings: got 'a.x00b'"):
        native.stream(PROMPT, stop_strings=["a\0b"])
    for tokens in (["a"], [2**40], [-1], "ab", None):
        with pytest.raises(UsageError, match=r"^decode: got"):
            native.decode(tokens)  # type: ignore[arg-type]


def test_a_dial_is_set_to_a_number(python: SolModel, native: NativeModel) -> None:
    for model in (python, native):
        stream = model.stream(PROMPT, max_new_tokens=3, budget=0.9)
        next(stream)
        for value in ("x", None, 10**400, math.nan, [1]):
            for name in ("budget", "tokens_per_second"):
                with pytest.raises(UsageError, match=name.replace("_", "-")):
                    setattr(stream, name, value)
        assert len(finished(stream).tokens) == 3


def test_settings_of_a_model_are_those_of_python() -> None:
    for settings in ({"threads": "x"}, {"threads": 0}, {"max_context": "x"}, {"max_context": 0}, {"max_context": True}):
        found = []
        for kind in (SolModel, NativeModel):
            with pytest.raises(UsageError, match="expected") as error:
                kind.from_pretrained(GOLDEN, measure_costs=False, **settings)  # type: ignore[attr-defined]
            found.append(str(error.value))
        assert found[0] == found[1]
    model = NativeModel.from_pretrained(GOLDEN, max_context=2**40, measure_costs=False)
    assert len(finished(model.stream(PROMPT, max_new_tokens=2)).tokens) == 2


def test_a_variant_of_the_prompt_runs_it_in_both(python: SolModel, native: NativeModel, tmp_path: Path) -> None:
    variant = next(key for key in python.bundle.config.variants if key.startswith("s060"))
    traces, found = [tmp_path / "python.jsonl", tmp_path / "native.jsonl"], []
    for kind, trace in zip((SolModel, NativeModel), traces, strict=True):
        model = kind.from_pretrained(GOLDEN, measure_costs=False, prefill=variant)  # type: ignore[attr-defined]
        stream = model.stream(PROMPT, max_new_tokens=12, budget=0.8, trace=trace)
        assert next(stream).action.tag == f"k100-{variant}"
        found.append(finished(stream))
    assert found[0].tokens == found[1].tokens
    assert [each.prefill for each in found] == [variant, variant]
    assert found[0].logprobs == pytest.approx(found[1].logprobs, abs=2e-5)
    plain = finished(native.stream(PROMPT, max_new_tokens=12, budget=0.8))
    assert plain.prefill == native.bundle.config.dense.variant
    assert abs(plain.logprobs[0] - found[1].logprobs[0]) > 1e-4
    heads = [json.loads(trace.read_text(encoding="utf-8").splitlines()[0]) for trace in traces]
    assert heads[0] == heads[1]
    assert heads[0]["prefill"] == variant
    replays = [native.stream(replay=traces[0]), python.stream(replay=read_trace(traces[1]))]
    for again in map(finished, replays):
        assert (again.first_difference, again.prefill) == (None, variant)


def test_a_variant_of_the_prompt_that_the_bundle_lacks_is_refused_by_both(native: NativeModel, tmp_path: Path) -> None:
    said = []
    for kind in (SolModel, NativeModel):
        with pytest.raises(UsageError, match="--prefill: got 's001-q4', expected one of") as error:
            kind.from_pretrained(GOLDEN, measure_costs=False, prefill="s001-q4")  # type: ignore[attr-defined]
        said.append(str(error.value))
    assert said[0] == said[1]
    trace = tmp_path / "trace.jsonl"
    finished(native.stream(PROMPT, max_new_tokens=4, trace=trace))
    head, *rest = trace.read_text(encoding="utf-8").splitlines()
    for value, expected in (("s001-q4", "--prefill: got 's001-q4'"), (3, "prefill: got 3, which has the wrong type")):
        trace.write_text("\n".join([json.dumps({**json.loads(head), "prefill": value}), *rest, ""]), encoding="utf-8")
        with pytest.raises(UsageError, match=expected):
            native.stream(replay=trace)
        with pytest.raises(SolError, match=expected):
            SolModel.from_pretrained(GOLDEN, measure_costs=False).stream(replay=read_trace(trace))


@pytest.mark.parametrize("settings", [{"native_ops": "x"}, {"measure_costs": [1]}, {"verify": 0}], ids=str)
def test_switches_of_a_model_are_on_or_off(settings: dict[str, Any]) -> None:
    for kind in (SolModel, NativeModel):
        with pytest.raises(UsageError, match="expected True or False"):
            kind.from_pretrained(GOLDEN, **{"measure_costs": False, **settings})  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", [None, 3, b"tiny", 10**5000, [GOLDEN]], ids=lambda path: type(path).__name__)
def test_paths_that_are_no_bundle_are_refused_by_both(path: Any) -> None:
    for kind in (SolModel, NativeModel):
        with pytest.raises(UsageError, match=r"^model: got .*, expected a bundle folder"):
            kind.from_pretrained(path)  # type: ignore[attr-defined]


def test_values_that_are_no_text_are_not_encoded(native: NativeModel) -> None:
    for text in (None, 3, b"Anna", ["Anna"]):
        with pytest.raises(UsageError, match=r"^prompt: got .*, expected a text"):
            native.encode(text)  # type: ignore[arg-type]


@pytest.mark.parametrize("chat", [False, True])
def test_a_text_that_is_much_too_long_is_refused_by_both(python: SolModel, native: NativeModel, chat: bool) -> None:
    text = "Anna " * 300_000
    prompt: Any = [{"role": "user", "content": text}] if chat else text
    for model in (python, native):
        with pytest.raises(
            ContextError, match=r"^prompt: got 15\d{5} characters, the first \d{5} of which are \d+ tokens"
        ):
            model.stream(prompt)


class TestReplacedAfterTheCheck:
    """The core opens a bundle's files itself, after Python has compared their hashes."""

    @pytest.fixture
    def checked(self, tmp_path: Path) -> Bundle:
        folder = Path(shutil.copytree(GOLDEN, tmp_path / "tiny"))
        return check_weights(Bundle.open(folder))[0]

    @pytest.mark.parametrize("name", ["weights.bin", "generation_config.json", "model.q8.onnx", "tokenizer.json"])
    def test_a_file(self, checked: Bundle, name: str) -> None:
        path = checked.path / name
        content = bytearray(path.read_bytes())
        content[-2] ^= 1
        (checked.path / "aside").write_bytes(content)
        (checked.path / "aside").replace(path)
        with pytest.raises(SolError, match=r"sha256|the file whose hash was compared"):
            NativeModel.from_pretrained(checked, measure_costs=False)

    def test_the_whole_bundle(self, checked: Bundle) -> None:
        path = checked.path / CONFIG_NAME
        path.write_bytes(path.read_bytes() + b"\n")
        with pytest.raises(BundleError, match=r"sol_config\.json: got another file"):
            NativeModel.from_pretrained(checked, measure_costs=False)

    def test_changed_files_are_taken_without_verification(self, checked: Bundle) -> None:
        path = checked.path / "generation_config.json"
        path.write_bytes(path.read_bytes().replace(b"\n", b" "))
        opened = Bundle.open(checked.path, verify=False)
        assert NativeModel.from_pretrained(opened, measure_costs=False).encode("Anna")


def test_a_budget_below_the_sensible_ones_warns_once(native: NativeModel) -> None:
    fresh = NativeModel.from_pretrained(GOLDEN, measure_costs=False)
    with pytest.warns(QualityWarning, match=r"this asks for 0\.10 of the dense cost"):
        fresh.stream(PROMPT, budget=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fresh.stream(PROMPT, budget=0.1)


@pytest.mark.usefixtures("_library")
def test_the_policy_is_the_default_at_the_budgets_where_it_wins(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(GOLDEN, tmp_path / "winning"))
    config = Bundle.open(folder).config
    assert config.policy is not None
    seal(folder, replace(config, policy=replace(config.policy, gain_over_hull=0.01, gain_budgets=(0.5, 0.7))))
    for kind in (NativeModel, SolModel):
        model = kind.from_pretrained(folder, measure_costs=False)
        dials: list[dict[str, float]] = [{"budget": 0.5}, {"budget": 0.7}, {"budget": 0.8}, {}, {"max_loss": 0.05}]
        names = []
        for dial in dials:
            stream = model.stream(PROMPT, max_new_tokens=2, **dial)
            assert len(list(stream)) == 2
            assert stream.result is not None
            names.append(stream.result.schedule)
        assert names == ["sol", "sol", "hull", "hull", "hull"], kind


@pytest.mark.usefixtures("_library")
def test_a_loss_beyond_the_sensible_warns_as_in_python(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(GOLDEN, tmp_path / "lossy"))
    config = Bundle.open(folder).config
    lossy = [
        replace(entry, losses={at: 100 * loss for at, loss in entry.losses.items()}) if entry.losses else entry
        for entry in config.actions
    ]
    seal(folder, replace(config, actions=tuple(lossy)))
    for kind in (NativeModel, SolModel):
        model = kind.from_pretrained(folder, measure_costs=False)
        with pytest.warns(QualityWarning, match="of the dense cost in bytes; below"):
            model.stream(PROMPT, max_loss=9.0, max_new_tokens=1)


def test_a_warning_that_is_an_error_leaves_an_older_stream_alone(native: NativeModel) -> None:
    alone = finished(native.stream(PROMPT, max_new_tokens=8)).tokens
    stream = native.stream(PROMPT, max_new_tokens=8)
    first = next(stream).token
    native._warned = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(QualityWarning):
            native.stream([9, 8, 7], budget=0.1, schedule="uniform")
    assert [first, *(step.token for step in stream)] == alone


def test_a_start_that_is_refused_ends_an_older_stream(native: NativeModel) -> None:
    stream = native.stream(PROMPT, max_new_tokens=8)
    next(stream)
    with pytest.raises(ContextError):
        native.stream([1] * 10**4)
    with pytest.raises(BusyError, match="interrupted by another one"):
        next(stream)


def test_a_generation_does_not_begin_inside_a_token_of_another(
    native: NativeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = finished(native.stream(PROMPT, max_new_tokens=8)).tokens
    stream = native.stream(PROMPT, max_new_tokens=8)
    got = [next(stream).token, next(stream).token]
    with ThreadPoolExecutor(1) as pool:
        begun: list[Any] = []

        def begin_another(self: NativeStream) -> None:
            if not begun:
                begun.append(pool.submit(native.stream, PROMPT[::-1], max_new_tokens=8))
                wait(begun, 0.5)

        with monkeypatch.context() as patch:
            patch.setattr(NativeStream, "_require_turn", begin_another)
            got.append(next(stream).token)
        assert got == alone[:3]
        newer = begun[0].result(20)
    with pytest.raises(BusyError, match="interrupted by another one"):
        next(stream)
    assert len(finished(newer).tokens) == 8


def test_a_budget_is_set_while_a_token_is_computed(native: NativeModel) -> None:
    stream = native.stream(PROMPT, max_new_tokens=3)
    next(stream)
    with native._turns.token, ThreadPoolExecutor(1) as pool:
        pool.submit(setattr, stream, "budget", 0.9).result(20)
    assert stream.budget == 0.9
    stream.close()


@pytest.mark.slow
def test_measured_costs_name_the_settings_of_the_operators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOL_RT_HOME", str(tmp_path))
    model = NativeModel.from_pretrained(GOLDEN)
    (file,) = costs_dir().iterdir()
    tuning = CostTable.from_json(file.read_text(encoding="utf-8")).tuning
    if not model.native:
        assert tuning is None
        return
    assert tuning is not None
    tried = candidates(4, quick=True)
    assert replace(tuning, members=0) in tried
    again = NativeModel.from_pretrained(GOLDEN)
    assert isinstance(again.cost, MeasuredCost)
    assert again.cost.path == file
    python = SolModel.from_pretrained(
        GOLDEN, provider="cpu"
    )  # tries settings of its own, and keeps times that fit them
    assert isinstance(python.cost, MeasuredCost)
    library = python.engine.provider.library
    assert library is not None
    assert operators.stored(operators.machine_key(python.engine.threads, library)) is not None
    assert python.cost.cost_table.tuning == operators.current(library)


def test_without_the_library_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "core_path", lambda: None)
    with pytest.raises(ProviderError, match=r"this installation has no native core; use --engine python, or install "):
        library.core.__wrapped__()


def generate(engine: str, *arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sol_rt", "generate", "-m", str(GOLDEN), "--engine", engine, *arguments]
    environment = {"SOL_RT_HOME": str(home), "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, env=environment
    )


@pytest.mark.slow
@pytest.mark.parametrize("dial", [("--budget", "0.6"), ("--schedule", "dense")], ids=" ".join)
def test_the_command_line_says_the_same_with_both_engines(dial: tuple[str, str], tmp_path: Path) -> None:
    asked = ["-p", "Ben and the cat", "--chat", "-n", "20", "--top-logprobs", "2", "--seed", "4", "--temp", "0.8"]
    found = {}
    for engine in ("python", "native"):
        done = generate(engine, *asked, *dial, "--json", home=tmp_path)
        assert done.returncode == 0, done.stderr
        found[engine] = json.loads(done.stdout)
    assert list(found["native"]) == list(found["python"])
    assert len(found["native"]["tokens"]) == len(found["python"]["tokens"])
    if "dense" in dial:  # under a budget, each engine measures costs of its own, which lead to other actions
        assert found["native"]["tokens"] == found["python"]["tokens"]
        assert found["native"]["text"] == found["python"]["text"]


def test_the_native_engine_refuses_a_gpu(tmp_path: Path) -> None:
    refused = generate("native", "-p", "x", "--provider", "cuda", home=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "runs on the CPU alone" in refused.stderr


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform == "win32" or sol_rt.ops.core_path() is None, reason="needs signals and the native core"
)
def test_ctrl_c_ends_the_text_and_tells_the_result() -> None:
    asked = ("generate", "-m", str(GOLDEN), "--engine", "native", "-p", "Ben", "-n", "700", "--budget", "1")
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    for _ in range(5):  # a text that has come to its end before the signal arrives says nothing
        with started(*asked, "--logit-bias", "2=-100", **streams) as process:
            assert process.stdout is not None
            process.stdout.read(1)
            process.send_signal(SIGINT)
            _, said = process.communicate(timeout=60)
        assert process.returncode in (0, 130), said
        assert b"budget: requested" in said
        if process.returncode == 130:
            return
    pytest.fail("Ctrl-C ended none of five texts")
