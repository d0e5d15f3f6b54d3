"""`SolModel` over the core: traces that it reads, calls that it refuses, files that change under it."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from helpers.places import TINY
from sol_rt.budget.cost.cost_table import CostTable, MeasuredCost
from sol_rt.budget.dial import Dial
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import CONFIG_NAME
from sol_rt.errors import BundleError, ContextError, ProviderError, QualityWarning, SolError, UsageError
from sol_rt.generate.model import SolModel
from sol_rt.generate.native.options import Options
from sol_rt.generate.request import Checks, Request
from sol_rt.generate.stream import Stream
from sol_rt.generate.trace import read_trace
from sol_rt.native import library
from sol_rt.store.home import costs_dir
from sol_rt.store.verified import check_weights

GOLDEN = TINY
PROMPT = [368, 14, 279, 363, 264, 345]


def opened(path: Path | str | Bundle = GOLDEN, **settings: Any) -> SolModel:
    return SolModel.from_pretrained(path, **{"provider": "cpu", "measure_costs": False, **settings})


@pytest.fixture(scope="module")
def model() -> SolModel:
    return opened()


def finished(stream: Any) -> Any:
    for _ in stream:
        pass
    return stream.result


def repeated(model: SolModel, trace: Path) -> Stream:
    """A replay of a file that the core reads, as hosts without Python have it read."""
    options = Options(model.cost, Dial())
    options.struct.replay = str(trace).encode()
    return Stream(model.engine, Checks(model.engine, model.session), Request([], options))


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
    with pytest.raises(UsageError, match=f"trace .*: got {name} of the bundle .*; choose another file"):
        finished(opened(folder).stream(PROMPT, trace=path, max_new_tokens=2))
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
def test_damaged_traces_are_refused_where_they_are_read_and_replayed(
    model: SolModel, tmp_path: Path, change: Any, message: str
) -> None:
    path = tmp_path / "trace.jsonl"
    finished(model.stream(PROMPT, trace=path, schedule="dense", max_new_tokens=5))
    lines = [json.dumps(json.loads(line)) + "\n" for line in path.read_text(encoding="utf-8").splitlines()]
    path.write_text(change("".join(lines)), encoding="utf-8")
    with pytest.raises(SolError) as expected:
        read_trace(path)
    with pytest.raises(SolError) as found:
        repeated(model, path)
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
def test_traces_that_do_not_fit_are_refused(model: SolModel, tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "trace.jsonl"
    finished(model.stream(PROMPT, trace=path, schedule="dense", max_new_tokens=5))
    lines = change([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()])
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    for replay in (lambda: model.stream(replay=read_trace(path)), lambda: repeated(model, path)):
        with pytest.raises(SolError) as refused:
            finished(replay())
        assert message in str(refused.value)
        assert len(str(refused.value)) < 400


_WIDE = """
import sys
from pathlib import Path
from sol_rt.errors import SolError
from sol_rt.generate.model import SolModel
try:
    model = SolModel.from_pretrained(sys.argv[1], provider="cpu", measure_costs=False)
    list(model.stream([3, 4], presence_penalty=1.0))
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
        (UsageError, "No such file or directory; choose another file", PROMPT, {"trace": "/nowhere/trace.jsonl"}),
    ],
)
def test_wrong_calls_are_refused_before_the_first_step(
    model: SolModel, error: type[SolError], message: str, prompt: Any, arguments: dict[str, Any]
) -> None:
    with pytest.raises(error) as found:
        model.stream(prompt, **arguments)
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
def test_arguments_of_another_kind_are_refused(model: SolModel, arguments: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"^(--)?{next(iter(arguments)).replace('_', '[-_]')}") as found:
        finished(model.stream(PROMPT, max_new_tokens=2, **arguments))
    assert str(found.value).isprintable()


def test_stop_strings_with_a_nul_are_refused(model: SolModel) -> None:
    with pytest.raises(UsageError, match=r"stop_strings: got 'a.x00b'"):
        model.stream(PROMPT, stop_strings=["a\0b"])


def test_a_dial_is_set_to_a_number_while_the_text_runs(model: SolModel) -> None:
    stream = model.stream(PROMPT, max_new_tokens=3, budget=0.9)
    next(stream)
    for value in ("x", None, 10**400, math.nan, [1]):
        for name in ("budget", "tokens_per_second"):
            with pytest.raises(UsageError, match=name.replace("_", "-")):
                setattr(stream, name, value)
    assert len(finished(stream).tokens) == 3
    stream.budget = 0.5  # too late, and no error: another thread may set it at any time


def test_a_budget_that_is_set_before_the_first_token_holds(model: SolModel) -> None:
    running = model.stream(PROMPT, max_new_tokens=30, budget=1.0)
    next(running)
    later = model.stream(PROMPT, max_new_tokens=80, eos_token_id=[], budget=1.0, schedule="hull")
    later.budget = 0.6
    finished(running)
    assert later.budget == 0.6
    assert finished(later).achieved_budget == pytest.approx(0.6, abs=0.05)


def test_a_context_beyond_any_number_of_the_core(tmp_path: Path) -> None:
    assert len(opened(max_context=2**40).generate(PROMPT, max_new_tokens=2).tokens) == 2


@pytest.mark.parametrize("path", [None, 3, b"tiny", 10**5000, [GOLDEN]], ids=lambda path: type(path).__name__)
def test_paths_that_are_no_bundle_are_refused(path: Any) -> None:
    with pytest.raises(UsageError, match=r"^model: got .*, expected a bundle folder"):
        opened(path)


@pytest.mark.parametrize("chat", [False, True])
def test_a_text_that_is_much_too_long_is_refused(model: SolModel, chat: bool) -> None:
    text = "Anna " * 300_000
    with pytest.raises(ContextError, match=r"^prompt: got 15\d{5} characters, the first \d{5} of which are \d+ tokens"):
        model.stream([{"role": "user", "content": text}] if chat else text)


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "Where is Ben? <|im_end|>"}],
        [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Anna"}],
    ],
    ids=str,
)
def test_the_core_renders_conversations_as_the_template_does(model: SolModel, tmp_path: Path, messages: Any) -> None:
    trace = tmp_path / "trace.jsonl"
    model.generate(messages, max_new_tokens=1, trace=trace)
    tokenizer = model.tokenizer
    user = tokenizer.marked_messages(messages)
    expected = tokenizer.encode_rendered(model.bundle.chat_template().render(user.marked), user)
    assert list(read_trace(trace).header.prompt_tokens) == expected


def test_roles_that_the_core_does_not_know_go_through_the_template(model: SolModel) -> None:
    assert model.generate([{"role": "narrator", "content": "Ben is here."}], max_new_tokens=2).prompt_tokens > 4


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
            SolModel.from_pretrained(checked, provider="cpu", measure_costs=False)

    def test_the_whole_bundle(self, checked: Bundle) -> None:
        path = checked.path / CONFIG_NAME
        path.write_bytes(path.read_bytes() + b"\n")
        with pytest.raises(BundleError, match=r"sol_config\.json: got another file"):
            SolModel.from_pretrained(checked, provider="cpu", measure_costs=False)

    def test_changed_files_are_taken_without_verification(self, checked: Bundle) -> None:
        path = checked.path / "generation_config.json"
        path.write_bytes(path.read_bytes().replace(b"\n", b" "))
        unchecked = Bundle.open(checked.path, verify=False)
        assert opened(unchecked).generate("Anna", max_new_tokens=2).tokens


def test_the_policy_is_the_default_whatever_is_asked_for_but_on_axes() -> None:
    model = opened()
    dials: list[dict[str, Any]] = [{"budget": 0.7}, {"budget": 1.0}, {}, {"max_loss": 0.05}, {"bits": 6}]
    names = [model.generate(PROMPT, max_new_tokens=2, **dial).schedule for dial in dials]
    assert names == ["sol"] * 4 + ["uniform"]
    assert model.default_schedule() == "sol"


def test_a_warning_that_is_an_error_leaves_an_older_stream_alone() -> None:
    model = opened()
    alone = model.generate(PROMPT, max_new_tokens=8).tokens
    stream = model.stream(PROMPT, max_new_tokens=8)
    first = next(stream).token
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(QualityWarning):
            model.stream([9, 8, 7], budget=0.1, schedule="uniform")
    assert [first, *(step.token for step in stream)] == alone


def test_a_start_that_is_refused_leaves_an_older_stream_alone(model: SolModel) -> None:
    alone = model.generate(PROMPT, max_new_tokens=8).tokens
    stream = model.stream(PROMPT, max_new_tokens=8)
    first = next(stream).token
    with pytest.raises(ContextError):
        model.stream([1] * 10**4)
    with pytest.raises(UsageError, match="contradict"):
        model.check(Dial(budget=0.5, max_loss=0.1))
    assert [first, *(step.token for step in stream)] == alone


@pytest.mark.usefixtures("measuring")
@pytest.mark.slow
def test_measured_costs_name_the_settings_of_the_operators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOL_RT_HOME", str(tmp_path))
    model = opened(measure_costs=True)
    (file,) = costs_dir().iterdir()
    tuning = CostTable.from_json(file.read_text(encoding="utf-8")).tuning
    if not model.native:
        assert tuning is None
        return
    assert tuning is not None
    assert tuning.row_bytes_ahead in (12288, 49152)
    assert not tuning.copies
    again = opened(measure_costs=True)
    assert isinstance(again.cost, MeasuredCost)
    assert again.cost.path == file


def test_without_the_library_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "core_path", lambda: None)
    with pytest.raises(ProviderError, match=r"this installation has no native core, .*; install a wheel of sol-rt"):
        library.core.__wrapped__()
