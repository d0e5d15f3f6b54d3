"""Caches of prompts on disk: what is kept, bounded and restored, and that an answer stays the same."""

from __future__ import annotations

import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from helpers.random_decoder import describe
from helpers.servers import served
from helpers.tiny_bundle import with_losing_prompts, write_bundle
from sol_rt.errors import SolError
from sol_rt.generate.model import SolModel
from sol_rt.generate.native.session import Session
from sol_rt.generate.results import GeneratedToken
from sol_rt.serve.answer_dial import AnswerDial
from sol_rt.serve.prefix_cache import Entry, PrefixCache
from sol_rt.serve.request import Asked
from sol_rt.serve.scheduler import Event, Job, Scheduler

ONE, TWO, THREE = ([start + n * step % 70 for n in range(200)] for start, step in ((3, 1), (5, 3), (7, 11)))
PLENTY = 1 << 30


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SolModel:
    decoder = replace(describe("llama"), max_context=2048)
    bundle = write_bundle(tmp_path_factory.mktemp("prefixes") / "tiny", decoder=decoder)
    return SolModel.from_pretrained(bundle, provider="cpu", measure_costs=False)


class Said(list[str]):
    """Lines for the operator."""


def prefixes_of(model: SolModel, folder: Path, said: Said | None = None, most: int = PLENTY) -> PrefixCache:
    say = Said().append if said is None else said.append
    return PrefixCache(folder, most, model.bundle.identity, model.bundle.config.kv, say)


@contextmanager
def scheduled(model: SolModel, prefixes: PrefixCache | None) -> Iterator[Scheduler]:
    """A scheduler with one session, as after a start: the session is empty."""
    model.engine.reset()
    scheduler = Scheduler(model, sessions=1, prefixes=prefixes)
    try:
        yield scheduler
    finally:
        scheduler.close()


def answer(scheduler: Scheduler, model: SolModel, prompt: list[int], **dial: Any) -> tuple[list[int], int]:
    """The tokens of an answer, and how many tokens of its prompt were cached."""
    stream = model.stream(prompt, max_new_tokens=12, eos_token_id=[], do_sample=False, reuse_cache=True, **dial)
    tokens: list[int] = []
    errors: list[Event | None] = []
    ended = threading.Event()

    def tell(event: Event | None) -> None:
        if isinstance(event, GeneratedToken):
            tokens.append(event.token)
            return
        errors.extend([event] if isinstance(event, Exception) else [])
        ended.set()

    job = Job(stream, prompt, tell, AnswerDial(stream, Asked(prompt, dial)))
    scheduler.submit(job)
    assert ended.wait(60)
    assert not errors
    return tokens, job.cached


def begins(entry: Entry) -> tuple[int, ...]:
    """The first tokens of an entry."""
    return tuple(entry.tokens[:50].tolist())


def test_an_answer_from_a_restored_prefix_is_that_of_a_fresh_prompt(model: SolModel, tmp_path: Path) -> None:
    longer = [*ONE, *range(30, 60)]
    with scheduled(model, None) as scheduler:
        fresh, cached = answer(scheduler, model, longer)
    assert cached == 0
    with scheduled(model, prefixes_of(model, tmp_path)) as scheduler:
        answer(scheduler, model, ONE)
        answer(scheduler, model, TWO)  # takes the session
        restored, cached = answer(scheduler, model, longer)
        assert cached == len(ONE)
    assert restored == fresh


def test_caches_survive_a_restart(model: SolModel, tmp_path: Path) -> None:
    """Also those of the sessions at the end."""
    with scheduled(model, prefixes_of(model, tmp_path)) as scheduler:
        first = answer(scheduler, model, ONE)[0]
        second = answer(scheduler, model, TWO)[0]
    with scheduled(model, prefixes_of(model, tmp_path)) as scheduler:
        assert answer(scheduler, model, ONE) == (first, len(ONE) - 1)
        assert answer(scheduler, model, TWO) == (second, len(TWO) - 1)


def test_what_is_saved_is_the_owner_s_alone(model: SolModel, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    with scheduled(model, prefixes_of(model, folder)) as scheduler:
        answer(scheduler, model, ONE)
    assert len(list(folder.iterdir())) == 2
    if sys.platform != "win32":
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_damaged_files_are_told_of_and_left_out(model: SolModel, tmp_path: Path) -> None:
    with scheduled(model, prefixes_of(model, tmp_path)) as scheduler:
        expected = [answer(scheduler, model, prompt)[0] for prompt in (ONE, TWO, THREE)]
    by_beginning = {begins(entry): entry for entry in prefixes_of(model, tmp_path).entries}
    cache = by_beginning[tuple(ONE[:50])].path
    content = bytearray(cache.read_bytes())
    content[len(content) // 2] ^= 1
    cache.write_bytes(content)
    tokens = by_beginning[tuple(TWO[:50])].path.with_suffix(".tokens")
    tokens.write_bytes(b"\1" + tokens.read_bytes()[1:])
    (tmp_path / f"{cache.stem[:17]}cafe.kv").write_bytes(b"")
    said = Said()
    with scheduled(model, prefixes_of(model, tmp_path, said)) as scheduler:
        assert len(said) == 2
        got = [answer(scheduler, model, prompt) for prompt in (ONE, TWO, THREE)]
    assert got == [(expected[0], 0), (expected[1], 0), (expected[2], len(THREE) - 1)]
    assert len(said) == 3
    assert "left out" in said[-1]


def test_a_file_that_goes_away_is_a_miss(model: SolModel, tmp_path: Path) -> None:
    said = Said()
    prefixes = prefixes_of(model, tmp_path, said)
    with scheduled(model, prefixes) as scheduler:
        answer(scheduler, model, ONE)
        answer(scheduler, model, TWO)
        for entry in prefixes.entries:
            entry.path.unlink()
        assert answer(scheduler, model, ONE)[1] == 0
    assert len(said) == 1


def test_the_folder_is_bounded_and_keeps_what_was_used_last(model: SolModel, tmp_path: Path) -> None:
    with scheduled(model, prefixes_of(model, tmp_path)) as scheduler:
        answer(scheduler, model, ONE)
    (size,) = (entry.size for entry in prefixes_of(model, tmp_path).entries)
    prefixes = prefixes_of(model, tmp_path, most=int(2.5 * size))
    with scheduled(model, prefixes) as scheduler:
        for prompt in (TWO, ONE, THREE):  # ONE was written first, and used after TWO
            answer(scheduler, model, prompt)
    kept = {begins(entry) for entry in prefixes.entries}
    assert kept == {tuple(ONE[:50]), tuple(THREE[:50])}
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2.5 * size
    assert not prefixes_of(model, tmp_path, most=0).entries
    assert not list(tmp_path.iterdir())


def test_a_longer_cache_takes_the_place_of_its_beginning(model: SolModel, tmp_path: Path) -> None:
    prefixes = prefixes_of(model, tmp_path)
    with scheduled(model, prefixes) as scheduler:
        begun = answer(scheduler, model, ONE)[0]
        answer(scheduler, model, TWO)
        answer(scheduler, model, [*ONE, *begun, *range(20, 40)])
        answer(scheduler, model, THREE)
        assert sorted(entry.tokens[0] for entry in prefixes.entries) == [ONE[0], TWO[0]]


@pytest.fixture(scope="module")
def losing(tmp_path_factory: pytest.TempPathFactory) -> SolModel:
    """A model of whose prompts 4 bits read those of answers that may lose a little."""
    decoder, folder = replace(describe("llama"), max_context=2048), tmp_path_factory.mktemp("losing")
    bundle = with_losing_prompts(write_bundle(folder / "tiny", decoder=decoder, losses=True), q4=0.001)
    return SolModel.from_pretrained(bundle, provider="cpu", measure_costs=False)


def read(model: SolModel, prompt: list[int], **dial: Any) -> Session:
    """A session whose cache has a prompt alone."""
    session = model.session()
    stream = model.stream(prompt, max_new_tokens=1, eos_token_id=[], reuse_cache=True, **dial)
    stream.move_to(session)
    next(stream)
    return session


def test_a_dense_answer_prefers_a_saved_dense_cache_to_a_cheaper_one_of_a_session(
    losing: SolModel, tmp_path: Path
) -> None:
    prefixes = prefixes_of(losing, tmp_path)
    with scheduled(losing, prefixes) as scheduler:
        assert answer(scheduler, losing, ONE)[1] == 0
        prefixes.save(read(losing, ONE, schedule="dense"))
        assert answer(scheduler, losing, [*ONE, 9], schedule="dense")[1] == len(ONE)


def test_a_cache_replaces_none_of_more_dense_tokens(losing: SolModel, tmp_path: Path) -> None:
    """Also one that another server wrote."""
    sessions = [read(losing, ONE, **dial) for dial in ({}, {"schedule": "dense"}, {})]
    assert [session.dense_tokens for session in sessions] == [0, len(ONE), 0]
    prefixes, other = prefixes_of(losing, tmp_path), prefixes_of(losing, tmp_path)
    for session, dense in zip(sessions, (0, len(ONE), len(ONE)), strict=True):
        prefixes.save(session)
        assert [entry.dense for entry in prefixes.entries] == [dense]
    other.save(sessions[0])
    assert {entry.dense for entry in prefixes_of(losing, tmp_path).entries} == {0, len(ONE)}


def test_a_dense_answer_takes_no_cache_that_a_cheaper_variant_read(losing: SolModel, tmp_path: Path) -> None:
    """Nor does that cache stay in the place of the dense one."""
    model = losing
    prefixes = prefixes_of(model, tmp_path / "caches")
    dense, ones = {"schedule": "dense"}, len(ONE) + 11  # the last token of an answer is not in the cache
    with scheduled(model, prefixes) as scheduler:
        cheap = answer(scheduler, model, ONE)[0]
        answer(scheduler, model, TWO)
        assert [(begins(entry), entry.dense) for entry in prefixes.entries] == [(tuple(ONE[:50]), 0)]
        assert prefixes_of(model, tmp_path / "caches").entries[0].dense == 0
        fresh = answer(scheduler, model, ONE, **dense)
        assert fresh[1] == 0
        assert begins(prefixes.entries[-1]) == tuple(TWO[:50])  # ONE's was not used
        answer(scheduler, model, TWO)
        assert [entry.dense for entry in prefixes.entries if begins(entry) == tuple(ONE[:50])][-1] == ones
        assert answer(scheduler, model, ONE, **dense) == (fresh[0], len(ONE) - 1)
        answer(scheduler, model, TWO)
        assert answer(scheduler, model, ONE)[1] == len(ONE) - 1
    assert len(cheap) == 12


def test_a_cache_that_cannot_go_back_serves_no_beginning(tmp_path: Path) -> None:
    """Where layers have a window, a long cache no longer has what a short beginning needs."""
    decoder = replace(describe("gemma2"), max_context=2048)
    model = SolModel.from_pretrained(
        write_bundle(tmp_path / "tiny", decoder=decoder), provider="cpu", measure_costs=False
    )
    assert 0 < max(model.bundle.config.kv.windows) < len(ONE)
    prefixes, long = prefixes_of(model, tmp_path / "caches"), [*ONE, *TWO, *THREE]
    for prompt in (ONE, long):
        prefixes.save(read(model, prompt))
    assert [len(entry.tokens) for entry in prefixes.entries] == [len(ONE), len(long)]
    with scheduled(model, prefixes) as scheduler:
        answer(scheduler, model, [*long, *range(20, 40)])
        answer(scheduler, model, [*ONE, *THREE[50:]])
        assert len(prefixes.entries[-1].tokens) == len(ONE)


def test_short_prompts_and_small_gains_stay_off_the_disk(model: SolModel, tmp_path: Path) -> None:
    prefixes = prefixes_of(model, tmp_path)
    with scheduled(model, prefixes) as scheduler:
        for prompt in (ONE[:20], TWO[:20], ONE[:20]):
            answer(scheduler, model, prompt)
    assert not prefixes.entries
    with scheduled(model, prefixes) as scheduler:
        answer(scheduler, model, ONE)
        answer(scheduler, model, TWO)
        assert answer(scheduler, model, [*ONE[:40], *THREE[40:]])[1] == 0


def test_another_bundle_s_caches_are_not_read_but_count(model: SolModel, tmp_path: Path) -> None:
    with scheduled(model, prefixes_of(model, tmp_path)) as scheduler:
        answer(scheduler, model, ONE)
    said = Said()
    other = PrefixCache(tmp_path, PLENTY, "another", model.bundle.config.kv, said.append)
    assert (other.entries, said) == ([], [])
    (tmp_path / "mine.kv").write_bytes(b"of another program")
    PrefixCache(tmp_path, 0, "another", model.bundle.config.kv, said.append)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.kv"]


def test_a_folder_that_can_t_be_made(model: SolModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SolError, match="--cache-dir"):
        prefixes_of(model, tmp_path / "file")


def test_a_folder_that_can_t_be_written_stops_nothing(model: SolModel, tmp_path: Path) -> None:
    said = Said()
    folder = tmp_path / "gone"
    prefixes = prefixes_of(model, folder, said)
    folder.rmdir()
    with scheduled(model, prefixes) as scheduler:
        answer(scheduler, model, ONE)
        answer(scheduler, model, TWO)
    assert len(said) == 2
    assert "not saved" in said[0]


@pytest.mark.parametrize("options", [(), ("--cache-bytes", "0")])
def test_without_a_folder_caches_last_as_long_as_the_server(
    bundle: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    with served(bundle, "--sessions", "1", *options, TMPDIR=str(tmp_path)) as address:

        def cached(prompt: list[int]) -> int:
            body = {"model": "tiny", "prompt": prompt, "max_tokens": 1, "temperature": 0}
            usage = httpx.post(f"{address}/v1/completions", json=body).raise_for_status().json()["usage"]
            return int(usage["prompt_tokens_details"]["cached_tokens"])

        found = [cached(prompt) for prompt in (ONE, TWO, ONE)]
        folders = list(tmp_path.iterdir())
        if sys.platform != "win32":
            assert [stat.S_IMODE(folder.stat().st_mode) for folder in folders] == [0o700] * len(folders)
    assert (found, len(folders)) == (([0, 0, 0], 0) if options else ([0, 0, len(ONE) - 1], 1))
    assert not list(tmp_path.iterdir())
