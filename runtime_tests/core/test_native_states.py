"""Layers with a state in the native core: session files with the states' copies, and runs that are broken off."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from collections.abc import Iterator
from ctypes import c_char_p, c_void_p
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="making a bundle comes with the extra export")

from helpers.core_steps import Core
from helpers.random_decoder import hf_config
from helpers.tiny_bundle import seal, write_bundle
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.cache_layout import CacheLayout
from sol_rt.bundle.config import CONFIG_NAME
from sol_rt.bundle.config_reader import read_config
from sol_rt.errors import NumericError
from sol_rt.export.sources.decoder import from_hf_config
from sol_rt.generate.model import SolModel
from sol_rt.generate.trace import read_trace
from sol_rt.native.library import core
from sol_rt.ops import core_path, library_path

BUNDLE, NUMERIC, CANCELLED = 2, 5, 7
DENSE, CHEAP, SPARSE = Action(1.0, 1.0, 8), Action(0.3, 0.5, 4), Action(0.3, 1.0, 6)
TOKENS = np.random.default_rng(3).integers(3, 90, 4000).tolist()
LAYERS = ["conv", "conv", "full_attention", "conv", "full_attention"]
Move = tuple[Action, list[int]] | int
"""Tokens to run under an action, or a length to go back to."""


@pytest.fixture(scope="module", params=["float16", "int8"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = {**hf_config("lfm2"), "num_hidden_layers": 5, "layer_types": LAYERS, "max_position_embeddings": 4096}
    return write_bundle(
        tmp_path_factory.mktemp(request.param) / "tiny",
        decoder=from_hf_config(config),
        kv=request.param,
        dense_layers=(2,) if request.param == "int8" else (),
    )


def steps(start: int, count: int) -> Iterator[Move]:
    """Decode steps under three actions in turn."""
    for place in range(start, start + count):
        yield (DENSE, CHEAP, SPARSE)[place % 3], [TOKENS[place]]


def moves() -> list[Move]:
    """A prompt of two chunks and steps after it; rewinds within the last runs, to copies, after copies and to 0."""
    made: list[Move] = [(DENSE, TOKENS[:700]), *steps(700, 150)]
    for length in (840, 835, 800, 790, 699, 640, 512, 511, 3, 0):
        made += [length, *steps(2000 + length, 20)]
    made += [(DENSE, TOKENS[:90]), *steps(90, 20), 95, (CHEAP, TOKENS[95:99]), *steps(99, 3)]
    for start in range(1000, 2500, 40):  # more copies than are kept
        made += [(DENSE, TOKENS[start : start + 20]), *steps(start + 20, 2)]
    for length in (900, 500, 450, 101, 60):
        made += [length, *steps(length, 3)]
    return made


def got_of(core: Core, chosen: list[Move]) -> Iterator[np.ndarray]:
    """The last logits and hidden state after each move that runs something."""
    for move in chosen:
        if isinstance(move, int):
            core.do(f"truncate {move}")
        else:
            yield core.forward(*move)


def test_a_restored_session_goes_on_as_the_saved_one(folder: Path, tmp_path: Path) -> None:
    """To the bit, over steps and rewinds to every kind of copy, into an engine that held another text."""
    before: list[Move] = [(DENSE, TOKENS[:700]), *steps(700, 100)]
    pending: list[Move] = [690, *steps(3000, 5), 650]  # saved before the tokens after the last copy run again
    after: list[Move] = [*steps(800, 9), 790, *steps(1, 2), 699, *steps(5, 30), 512, *steps(9, 3), 40, *steps(50, 3)]
    with Core(tmp_path / "results") as core:
        core.do(f"load {folder}")
        for name, chosen in (("first", before), ("pending", [*before, *pending])):
            if name == "pending":
                after = [move for move in after if not isinstance(move, int) or move <= 650]
            core.do("engine")
            list(got_of(core, chosen))
            length = core.do(f"save {tmp_path / name}")
            went_on = list(got_of(core, after))
            core.do("engine")
            core.forward(CHEAP, TOKENS[1000 : 1000 + length])  # another text of this length
            assert core.do(f"restore {tmp_path / name}") == length
            assert all(map(np.array_equal, got_of(core, after), went_on)), name


def test_an_empty_session_is_restored_as_one(folder: Path, tmp_path: Path) -> None:
    with Core(tmp_path / "results") as core:
        core.do(f"load {folder}")
        core.do("engine")
        fresh = core.forward(DENSE, TOKENS[:30])
        core.do("truncate 0")
        assert core.do(f"save {tmp_path / 'session'}") == 0
        core.forward(DENSE, TOKENS[100:200])
        assert core.do(f"restore {tmp_path / 'session'}") == 0
        assert np.array_equal(core.forward(DENSE, TOKENS[:30]), fresh)


def test_states_that_no_graph_has_take_no_memory(folder: Path, tmp_path: Path) -> None:
    """The config alone says that the states and the copies of the last runs are 900 MB."""
    edited, session = Path(shutil.copytree(folder, tmp_path / "edited")), tmp_path / "session"
    config = json.loads((edited / CONFIG_NAME).read_text(encoding="utf-8"))
    config["model"] |= {"hidden_size": 1 << 17, "num_heads": 32, "num_kv_heads": 1, "head_dim": 4096}
    config["kv"]["conv_size"] = 32
    tensors = config["weights"]["tensors"]
    for name in list(tensors):
        if name.endswith(("embed.scale", "conv.weight", "qkv.scale", "o.scale")):  # their shapes repeat the sizes
            del tensors[name]
    (edited / CONFIG_NAME).write_text(json.dumps(config), encoding="utf-8")
    with Core(tmp_path / "results") as core:
        core.do(f"load {edited}")
        core.do("engine")
        core.do(f"save {session}")
        assert core.do(f"restore {session}") == 0
        core.fails(f"forward {DENSE.tag} 3 4", BUNDLE, str(edited))
        status = Path(f"/proc/{core.process.pid}/status").read_text(encoding="utf-8")
        peak = int(status.partition("VmHWM:")[2].split()[0])  # kB
        assert peak < 500_000


class Saved:
    """A session's file, taken apart from its end: the copies of the last runs, then those at chosen lengths."""

    def __init__(self, path: Path, bundle: Bundle) -> None:
        model, kv = bundle.config.model, bundle.config.kv
        self.path, self.content = path, bytearray(path.read_bytes()[:-32])
        self.copy = 8 + kv.state_bytes(model.hidden_size)
        self.last = next(self._ends(16))
        self.kept = next(self._ends(32, self.last))

    def _ends(self, most: int, end: int | None = None) -> Iterator[int]:
        """Places from which on as many copies follow as the number there says."""
        end = len(self.content) if end is None else end
        for count in range(most, -1, -1):
            at = end - 8 - count * self.copy
            if at >= 0 and struct.unpack_from("<q", self.content, at) == (count,):
                yield at

    def lengths(self, at: int) -> list[int]:
        (count,) = struct.unpack_from("<q", self.content, at)
        return [struct.unpack_from("<q", self.content, at + 8 + i * self.copy)[0] for i in range(count)]

    def write(self, at: int, value: int, kind: str = "<q") -> None:
        """The file with another number at this place."""
        content = bytearray(self.content)
        struct.pack_into(kind, content, at, value)
        self.path.write_bytes(content + hashlib.sha256(content).digest())


def test_impossible_copies_are_refused(folder: Path, tmp_path: Path) -> None:
    session, bundle = tmp_path / "session", Bundle.open(folder)
    with Core(tmp_path / "results") as core:
        core.do(f"load {folder}")
        core.do("engine")
        fresh = core.forward(DENSE, TOKENS[:90])
        for step in steps(90, 40):
            assert not isinstance(step, int)
            core.forward(*step)
        core.do(f"save {session}")
        saved = Saved(session, bundle)
        assert saved.lengths(saved.kept) == [89, 90, 128]
        assert sorted(saved.lengths(saved.last)) == list(range(115, 131))
        first, second = saved.last + 8, saved.last + 8 + saved.copy
        of_second = saved.lengths(saved.last)[1]
        for at, value, said in (
            (saved.last, 17, "got 17 copies of states, expected at most 16"),
            (saved.last, -1, "got -1 copies of states"),
            (saved.kept, 2**62, "copies of states, expected at most 32"),
            (first, 0, "copies of states of impossible lengths"),
            (first, -3, "copies of states of impossible lengths"),
            (first, 131, "copies of states of impossible lengths"),
            (first, of_second - 16, "copies of states of impossible lengths"),
            (second, 2**62, "copies of states of impossible lengths"),
            (saved.kept + 8, 91, "copies of states of impossible lengths"),
            (saved.kept + 8, 131, "copies of states of impossible lengths"),
        ):
            saved.write(at, value)
            core.do("truncate 0")
            core.forward(DENSE, TOKENS[:50])
            core.fails(f"restore {session}", BUNDLE, "session file: got", said)
            assert core.do("use 0") == 0
            assert np.array_equal(core.forward(DENSE, TOKENS[:90]), fresh)
        saved.write(8, 1, "<I")
        assert core.do(f"restore {session}") == 130


def test_files_of_other_versions_are_refused(folder: Path, tmp_path: Path) -> None:
    plain = write_bundle(tmp_path / "plain")
    session = tmp_path / "session"
    with Core(tmp_path / "results") as core:
        for bundle in (folder, plain):
            core.do(f"load {bundle}")
            core.do("engine")
            core.forward(DENSE, TOKENS[:20])
            core.do(f"save {session}")
            content = bytearray(session.read_bytes()[:-32])
            assert struct.unpack_from("<I", content, 8) == (1,)
            for version in (0, 3):
                struct.pack_into("<I", content, 8, version)
                session.write_bytes(content + hashlib.sha256(content).digest())
                core.fails(f"restore {session}", BUNDLE, f"got version {version}, expected version 1 or 2")


def test_a_cancelled_prompt_goes_on_where_it_was(folder: Path, tmp_path: Path) -> None:
    after: list[Move] = [(DENSE, TOKENS[532:700]), *steps(700, 5), 540, *steps(1, 2)]
    with Core(tmp_path / "results") as core:
        core.do(f"load {folder}")
        core.do("engine")
        core.forward(DENSE, TOKENS[:20])
        core.forward(DENSE, TOKENS[20:532])
        expected = list(got_of(core, after))
        core.do("engine")
        core.forward(DENSE, TOKENS[:20])
        core.do("cancel 2")
        core.fails(f"forward {DENSE.tag} {' '.join(map(str, TOKENS[20:1400]))}", CANCELLED, "cancelled")
        assert core.do("use 1") == 532
        for got, wanted in zip(got_of(core, after), expected, strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-2, atol=1e-2)  # the chunks before it were others
        core.do("truncate 500")
        core.do("cancel 2")  # before the tokens after the last copy run again
        core.fails(f"forward {DENSE.tag} 5", CANCELLED, "cancelled")
        assert core.do("use 1") == 500


def test_a_refused_step_changes_nothing(tmp_path: Path) -> None:
    """A token whose embedding is not finite gives no numbers; the tokens after it do."""
    config = from_hf_config({**hf_config("lfm2"), "tie_word_embeddings": False})
    folder = write_bundle(tmp_path / "tiny", decoder=config)
    entry = read_config(folder / CONFIG_NAME).tensors["embed.scale"]
    scales = np.memmap(folder / "weights.bin", np.float16, "r+", entry.offset, entry.shape)
    scales[:, 80] = np.inf
    scales.flush()
    tokens = [token % 70 for token in TOKENS]
    with Core(tmp_path / "results", native=False) as core:
        core.do(f"load {folder}")
        core.do("engine")
        core.forward(DENSE, tokens[:30])
        expected = [core.forward(CHEAP, [token]) for token in tokens[30:34]]
        core.do("truncate 30")
        core.fails(f"forward {DENSE.tag} 80", NUMERIC, "variant s100-q8 gave non-finite numbers at token 30")
        core.fails(f"forward {DENSE.tag} 3 80 4", NUMERIC, "gave non-finite numbers at token 30")
        assert core.do("use 0") == 30
        assert all(map(np.array_equal, expected, [core.forward(CHEAP, [token]) for token in tokens[30:34]]))


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with losses and a policy."""
    return write_bundle(tmp_path_factory.mktemp("spoken") / "tiny", "lfm2", policy=True, losses=True)


WITH_CORE = pytest.mark.skipif(core_path() is None, reason="the native core is not built")
SAMPLED: dict[str, Any] = {"do_sample": True, "seed": 3, "temperature": 1.2, "top_p": 0.95}
LONG: dict[str, Any] = {"max_new_tokens": 40, "eos_token_id": [], **SAMPLED}


@WITH_CORE
@pytest.mark.parametrize(
    "dial",
    [{"budget": 1.0}, {"budget": 0.7}, {"budget": 0.6, "schedule": "sol"}, {"kv_density": 0.6, "bits": 6}],
    ids=str,
)
@pytest.mark.filterwarnings("ignore::sol_rt.errors.QualityWarning")
def test_turns_are_those_of_a_session_that_was_never_saved(spoken: Path, tmp_path: Path, dial: dict[str, Any]) -> None:
    """A second turn, the first one again, an edited one; each from a file that another session saved."""
    going, saved = (opened(spoken, native=True) for _ in range(2))
    settings = {"max_new_tokens": 40, "eos_token_id": [], "reuse_cache": True, **SAMPLED, **dial}
    texts = [TOKENS[:60]]
    for number in range(4):
        expected, found = (
            finished(model.stream(texts[-1], trace=tmp_path / name, **settings))
            for model, name in ((going, "going"), (saved, "saved"))
        )
        assert found.tokens == expected.tokens
        assert found.cached_tokens == expected.cached_tokens
        assert found.actions == expected.actions
        assert found.achieved_budget == pytest.approx(expected.achieved_budget, rel=1e-12)
        lines = [[json.loads(line) for line in read_lines(tmp_path / name)] for name in ("going", "saved")]
        for theirs, ours in zip(*(each[1:] for each in lines), strict=True):
            assert [ours[name] for name in SAME] == [theirs[name] for name in SAME]
            assert ours["cost"] == pytest.approx(theirs["cost"], rel=1e-12)
        said = [*texts[-1], *found.tokens]
        texts.append([[*said, 5, 6, 7], texts[0], [*texts[-1][:50], 9, 8, 7], said][number])
        saved = reopened(saved, spoken, tmp_path / "session")
    assert finished(saved.stream(replay=read_trace(tmp_path / "going"))).first_difference is None


SAME = ("step", "token", "text", "action", "context")


def read_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def finished(stream: Any) -> Any:
    for _ in stream:
        pass
    return stream.result


def opened(folder: Path, native: bool) -> SolModel:
    """A model on the CPU, with native operators or without."""
    return SolModel.from_pretrained(folder, provider="cpu", measure_costs=False, native_ops=native)


def reopened(model: SolModel, folder: Path, session: Path, native: bool = True) -> SolModel:
    """Another model, whose session has what this one's file holds."""
    other = opened(folder, native)
    for function, each in (("save", model), ("restore", other)):
        call = getattr(core(), f"sol_session_{function}")
        call.restype, call.argtypes = c_void_p, (c_void_p, c_char_p)
        assert call(each.engine.handle, str(session).encode()) is None
    return other


@WITH_CORE
@pytest.mark.parametrize("native", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["native", "bodies"])
def test_a_generation_without_finite_numbers_leaves_a_session_that_goes_on(tmp_path: Path, native: bool) -> None:
    """Generations fail in the middle of an answer, then in a prompt. Later answers are a fresh session's."""
    config = {**hf_config("lfm2"), "num_hidden_layers": 5, "layer_types": LAYERS, "tie_word_embeddings": False}
    folder = write_bundle(tmp_path / "tiny", decoder=from_hf_config(config), losses=True)
    prompt = TOKENS[:60]
    whole = finished(opened(folder, native).stream(prompt, schedule="dense", **LONG)).tokens
    place = next(i for i, token in enumerate(whole) if i >= 20 and token not in [*prompt, *whole[:i], 5, 6, 7])
    poison(folder, whole[place])
    model, other = opened(folder, native), opened(folder, native)
    said = [*prompt, *whole[:place]]
    failing = {"reuse_cache": True, "schedule": "dense", **LONG}
    after = {"logit_bias": {whole[place]: -100}, "reuse_cache": True, **LONG}
    wrong = [*said, whole[place], *TOKENS[:9]]
    turns = [
        (prompt, whole[: place + 1], [*said, 5, 6, 7], "dense"),  # after what the answer left in the cache
        (wrong, [], [*said[:70], 6], "dense"),  # after a rewind, too
        (wrong, [], said[:65], f"fixed:{CHEAP.tag}"),  # function bodies read what they mask
    ]
    for first, told, text, schedule in turns:
        assert until_it_fails(model, first, failing) == told
        found, expected = (finished(each.stream(text, schedule=schedule, **after)) for each in (model, other))
        assert found.tokens == expected.tokens


def until_it_fails(model: Any, prompt: list[int], settings: dict[str, Any]) -> list[int]:
    """The tokens of a generation until its numbers are no longer finite."""
    made: list[int] = []
    stream = model.stream(prompt, **settings)
    with pytest.raises(NumericError, match="gave non-finite numbers at token"):
        made.extend(token.token for token in stream)
    return made


def poison(folder: Path, token: int) -> None:
    """Makes a bundle's embedding of this token infinite."""
    config = read_config(folder / CONFIG_NAME)
    entry = config.tensors["embed.scale"]
    scales = np.memmap(folder / "weights.bin", np.float16, "r+", entry.offset, entry.shape)
    scales[:, token] = np.inf
    scales.flush()
    seal(folder, config)


@pytest.mark.slow
@WITH_CORE
def test_turns_of_function_bodies_are_those_of_a_session_that_was_never_saved(spoken: Path, tmp_path: Path) -> None:
    """Without native operators the core keeps states, too: turns, rewinds and files as with them."""
    going, saved = (opened(spoken, native=False) for _ in range(2))
    assert not saved.native
    settings = {"reuse_cache": True, "budget": 0.6, **LONG}
    texts = [TOKENS[:140]]  # more than a chunk
    for number in range(4):
        expected, found = (finished(model.stream(texts[-1], **settings)) for model in (going, saved))
        assert (found.tokens, found.cached_tokens) == (expected.tokens, expected.cached_tokens)
        assert found.actions == expected.actions
        assert found.achieved_budget == pytest.approx(expected.achieved_budget, rel=1e-12)
        said = [*texts[-1], *found.tokens]
        texts.append([[*said, 5, 6, 7], texts[0], [*texts[-1][:50], 9, 8, 7], said][number])
        saved = reopened(saved, spoken, tmp_path / "session", native=False)


@pytest.mark.slow
def test_function_bodies_take_the_file_of_native_operators_but_not_the_reverse(folder: Path, tmp_path: Path) -> None:
    if library_path() is None:
        pytest.skip("the native operators are not built")
    after: list[Move] = [*steps(700, 3), 350, *steps(9, 20), 299, *steps(40, 3), 100, *steps(50, 3)]
    file, copy = tmp_path / "native", tmp_path / "bodies"
    with Core(tmp_path / "results") as core:
        core.do(f"load {folder}")
        core.do("engine")
        fresh, *_ = got_of(core, [(DENSE, TOKENS[:300]), *steps(300, 70)])
        core.do(f"save {file}")
    with Core(tmp_path / "results", native=False) as core:
        core.do(f"load {folder}")
        core.do("engine")
        assert core.do(f"restore {file}") == 370
        core.do(f"save {copy}")
        theirs, ours = (path.read_bytes()[:-32] for path in (file, copy))
        assert ours == theirs[:12] + struct.pack("<I", 0) + theirs[16:]  # all copies, and who filled the cache
        went_on = list(got_of(core, after))
        core.do("engine")
        assert core.do(f"restore {copy}") == 370
        assert all(map(np.array_equal, got_of(core, after), went_on))
    with Core(tmp_path / "results") as core:
        core.do(f"load {folder}")
        core.do("engine")
        core.forward(CHEAP, TOKENS[700:800])
        core.fails(f"restore {copy}", BUNDLE, "a cache that function bodies filled, without key codes")
        assert core.do("use 0") == 0
        assert np.array_equal(core.forward(DENSE, TOKENS[:300]), fresh)


@pytest.fixture(scope="module", params=["float16", "int8"])
def windowed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose layers that attend have windows, too."""
    config = {**hf_config("lfm2"), "num_hidden_layers": 5, "layer_types": LAYERS, "max_position_embeddings": 4096}
    decoder = replace(from_hf_config(config), windows=(0, 0, 24, 0, 40))
    base = tmp_path_factory.mktemp(f"windowed-{request.param}")
    return write_bundle(base / "tiny", decoder=decoder, kv=request.param, losses=True)


def test_a_session_with_windows_goes_on_as_it_was_saved(windowed: Path, tmp_path: Path) -> None:
    """Over rewinds to where cache and states hold all, to where the cache no longer holds what the last copy's next
    token reads although it holds what the wanted one's reads, and to where it holds neither.
    """
    if library_path() is None:
        pytest.skip("the native operators are not built")
    before: list[Move] = [(DENSE, TOKENS[:1500]), *steps(1500, 40)]
    rewinds: list[Move] = [1530, *steps(7, 20), 1450, *steps(9, 3), 1000, *steps(60, 30), 1010, (DENSE, TOKENS[:700])]
    after: list[Move] = [*rewinds, 1300, *steps(50, 3), 300, *steps(80, 9), 0, (CHEAP, TOKENS[:90]), *steps(3, 3)]
    pending: list[Move] = [*steps(60, 30), 1010, *steps(3, 3), 200, *steps(5, 3)]
    session = tmp_path / "session"
    with Core(tmp_path / "results") as core:
        core.do(f"load {windowed}")
        core.do("engine")
        list(got_of(core, before))
        core.do(f"save {session}")
        content = session.read_bytes()
        assert struct.unpack_from("<5q", content, 104 + 4 * 1540) == (0, 0, 768, 0, 768)
        expected = list(got_of(core, after))
        core.do("engine")
        core.forward(CHEAP, TOKENS[1000:2700])  # what it held before is nothing to what it holds then
        assert core.do(f"restore {session}") == 1540
        assert all(map(np.array_equal, got_of(core, after), expected))
        core.do(f"restore {session}")
        core.do("truncate 1000")
        core.do(f"save {session}")  # before all tokens run again
        expected = list(got_of(core, pending))
        core.do("engine")
        assert core.do(f"restore {session}") == 1000
        assert all(map(np.array_equal, got_of(core, pending), expected))


@WITH_CORE
def test_turns_with_windows_are_those_of_a_session_that_was_never_saved(windowed: Path, tmp_path: Path) -> None:
    """A second turn; edits where the cache holds all, where it holds what is read there but not what is read after the
    last copy, and where it holds neither; with files in between.
    """
    going, saved = (opened(windowed, native=True) for _ in range(2))
    settings = {"reuse_cache": True, "budget": 0.6, **LONG}
    text, cached = TOKENS[:1400], []
    for kept in (1500, 1400, 1000, 700, 250, 0):
        expected, found = (finished(model.stream(text, **settings)) for model in (going, saved))
        assert (found.tokens, found.cached_tokens) == (expected.tokens, expected.cached_tokens)
        assert found.actions == expected.actions
        text = [*[*text, *found.tokens][:kept], 5, 6, kept % 90]
        cached.append(found.cached_tokens)
        saved = reopened(saved, windowed, tmp_path / "session")
    assert (cached[:3], cached[-1]) == ([0, 1439, 1400], 0)


@WITH_CORE
def test_private_memory_counts_the_states(spoken: Path) -> None:
    native = opened(spoken, native=True)
    finished(native.stream(TOKENS[:60], max_new_tokens=1, schedule="dense"))
    config = Bundle.open(spoken).config
    model, kv = config.model, config.kv
    buffers = 8 * 5 * model.num_layers + 4 * (model.vocab_size + model.hidden_size)
    cache = CacheLayout(model, kv).bytes_at(kv.capacity_for(60))
    copies = 2  # before the last token of the prompt, and after it
    assert native.engine.private_bytes == cache + (2 + 16 + copies) * kv.state_bytes(model.hidden_size) + buffers
