"""Damaged files of a bundle are refused at the first load, and every change is noticed later."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import damaged_weights
import pytest

from helpers.policy_session import PolicySession
from helpers.random_decoder import WEIGHTS
from helpers.tiny_bundle import write_bundle
from sol_rt import SolModel
from sol_rt.bundle import bundle as bundle_module
from sol_rt.bundle.bundle import Bundle, sha256
from sol_rt.bundle.config import CONFIG_NAME, FileEntry, SolConfig
from sol_rt.bundle.file_state import CLOCK_NS, FileState
from sol_rt.bundle.verify import verify_bundle
from sol_rt.bundle.weights import SharedWeights
from sol_rt.cli.app import run
from sol_rt.errors import BundleError
from sol_rt.read_file import read_bytes
from sol_rt.store import verified


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("made") / "tiny", policy=True)


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "tiny"))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "home"
    monkeypatch.setenv("SOL_RT_HOME", str(folder))
    forget()
    yield folder
    forget()


def forget() -> None:
    """Makes this process one that has just started."""
    verified._here.clear()
    verified._told = False


def flip(path: Path, at: int) -> None:
    """Changes a bit of a file in place."""
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def replaced(path: Path, content: bytes) -> None:
    """Replaces a file by renaming, as every writer of this package does."""
    aside = path.with_name("aside")
    aside.write_bytes(content)
    aside.replace(path)


class Hashed:
    """Counts how often a weights file is hashed."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, step: str, done: float, total: float) -> None:
        self.count += done == total


def load(path: Path) -> SolModel:
    return SolModel.from_pretrained(path, measure_costs=False)


def refused(capsys: pytest.CaptureFixture[str], argv: list[str], *parts: str) -> None:
    assert run(argv) == 1
    out, err = capsys.readouterr()
    line = err.splitlines()[-1]
    assert out == ""
    assert line.startswith("sol-rt: error:")
    for part in parts:
        assert part in line


class TestDamage:
    @pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
    def test_a_flipped_bit_anywhere_in_the_weights_is_refused(self, share: float, bundle: Path) -> None:
        path = bundle / WEIGHTS
        flip(path, int(share * (path.stat().st_size - 1)))
        entry = Bundle.open(bundle).config.files[WEIGHTS]
        with pytest.raises(BundleError) as caught:
            load(bundle)
        message = str(caught.value)
        assert str(path) in message
        assert entry.sha256[:12] in message
        assert sha256(path)[:12] in message
        assert entry.sha256 not in message  # the line stays short
        assert "pull or export" in message
        assert "--no-verify" in message

    @pytest.mark.parametrize(
        "argv", [["generate", "-p", "w1"], ["profile"], ["bench", "-n", "1"], ["chat", "-p", "w1"]], ids=" ".join
    )
    def test_commands_refuse_damaged_weights_in_one_line(
        self, argv: list[str], bundle: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        flip(bundle / WEIGHTS, 1000)
        refused(capsys, [*argv, "-m", str(bundle)], WEIGHTS, "sha256", "--no-verify")

    def test_no_verify_takes_the_files_as_they_are(self, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
        flip(bundle / WEIGHTS, 1000)
        with (bundle / CONFIG_NAME).open("r+") as file:
            config = json.load(file)
            config["files"]["chat_template.jinja"]["sha256"] = "0" * 64
            file.seek(0)
            json.dump(config, file)
        argv = ["generate", "-m", str(bundle), "--chat", "-p", "w1", "-n", "2", "--schedule", "dense"]
        assert run([*argv, "--no-verify"]) == 0
        SolModel.from_pretrained(bundle, measure_costs=False, verify=False)
        assert not (verified.home() / verified.STATE).exists()  # nothing was checked, so nothing is remembered
        capsys.readouterr()
        refused(capsys, argv, "chat_template.jinja", "sha256")

    @pytest.mark.parametrize("name", ["model.q8.onnx", "policy.onnx", "tokenizer.json", "chat_template.jinja"])
    def test_a_damaged_small_file_is_refused_before_it_is_parsed(self, name: str, bundle: Path) -> None:
        flip(bundle / name, 20)
        with pytest.raises(BundleError, match="sha256"):
            load(bundle)

    def test_every_file_of_an_export_has_a_hash(self, llama_bundle: Path) -> None:
        files = json.loads((llama_bundle / CONFIG_NAME).read_text())["files"]
        assert set(files) == {path.name for path in llama_bundle.iterdir()} - {CONFIG_NAME}
        for name, entry in files.items():
            assert entry["sha256"] == hashlib.sha256((llama_bundle / name).read_bytes()).hexdigest()


class TestMemory:
    def hashed(self, path: Path) -> int:
        count = Hashed()
        verified.check_weights(Bundle.open(path), count)
        return count.count

    def test_weights_are_hashed_once(self, bundle: Path) -> None:
        assert self.hashed(bundle) == 1
        assert self.hashed(bundle) == 0
        forget()
        assert self.hashed(bundle) == 0  # by the file in the home
        (verified.home() / verified.STATE).unlink()
        forget()
        assert self.hashed(bundle) == 1

    @pytest.mark.parametrize("restore_time", [False, True])
    def test_a_change_is_noticed(self, restore_time: bool, bundle: Path) -> None:
        path = bundle / WEIGHTS
        assert self.hashed(bundle) == 1
        before = path.stat()
        flip(path, 4000)
        if restore_time:  # the time of the last change cannot be set
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        with pytest.raises(BundleError, match="sha256"):
            self.hashed(bundle)

    def test_a_change_right_after_the_check_has_another_time(self, bundle: Path) -> None:
        """A file that was written just now is hashed only after the clock that stamps files has ticked."""
        replaced(bundle / WEIGHTS, (bundle / WEIGHTS).read_bytes())
        ages: list[int] = []

        def report(step: str, done: float, total: float) -> None:
            ages.append(time.time_ns() - (bundle / WEIGHTS).stat().st_ctime_ns)

        verified.check_weights(Bundle.open(bundle), report)
        assert ages[0] >= CLOCK_NS
        flip(bundle / WEIGHTS, 4000)
        with pytest.raises(BundleError, match="sha256"):
            self.hashed(bundle)

    def test_another_file_of_this_name_is_noticed(self, bundle: Path) -> None:
        assert self.hashed(bundle) == 1
        content = bytearray((bundle / WEIGHTS).read_bytes())
        content[77] ^= 1
        replaced(bundle / WEIGHTS, bytes(content))
        with pytest.raises(BundleError, match="sha256"):
            self.hashed(bundle)

    def test_a_copy_is_hashed_and_a_moved_bundle_is_not(self, bundle: Path, tmp_path: Path) -> None:
        assert self.hashed(bundle) == 1
        assert self.hashed(Path(shutil.copytree(bundle, tmp_path / "copy"))) == 1
        assert self.hashed(bundle.rename(tmp_path / "moved")) == 0

    def test_another_config_is_compared_with_the_remembered_hash(self, bundle: Path) -> None:
        assert self.hashed(bundle) == 1
        config = json.loads((bundle / CONFIG_NAME).read_text())
        config["files"][WEIGHTS]["sha256"] = "0" * 64
        (bundle / CONFIG_NAME).write_text(json.dumps(config))
        with pytest.raises(BundleError, match="sha256"):
            self.hashed(bundle)

    @pytest.mark.parametrize(
        "content",
        ["", "{", "[]", '{"format": "sol_rt.verified", "format_version": 2}', "\udcff", "[" * 100_000]
        + [
            '{"format": "sol_rt.verified", "format_version": 1, "files": ' + files + "}"
            for files in ("3", '{"a": [1]}', '{"a": [1e999, 1, 1, "x"]}')
        ],
        ids=lambda text: text[:20].encode("unicode_escape").decode(),
    )
    def test_a_damaged_memory_is_made_anew(self, content: str, bundle: Path, home: Path) -> None:
        home.mkdir()
        (home / verified.STATE).write_bytes(content.encode("utf-8", "surrogateescape"))
        assert self.hashed(bundle) == 1
        forget()
        assert self.hashed(bundle) == 0

    def test_a_damaged_hash_in_the_memory_is_made_anew(self, bundle: Path, home: Path) -> None:
        assert self.hashed(bundle) == 1
        written = (home / verified.STATE).read_text()
        (home / verified.STATE).write_text(written.replace(sha256(bundle / WEIGHTS), "x"))
        forget()
        assert self.hashed(bundle) == 1

    def test_the_memory_of_hashes_stays_small(self, bundle: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(verified, "_MOST", 3)
        for _ in range(5):
            replaced(bundle / WEIGHTS, (bundle / WEIGHTS).read_bytes())
            (bundle / WEIGHTS).touch()
            self.hashed(bundle)
        assert len(json.loads((home / verified.STATE).read_text())["files"]) <= 3
        forget()
        assert self.hashed(bundle) == 0

    def test_a_home_that_cannot_be_written_is_said_once(
        self, bundle: Path, home: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        home.write_text("a file where a folder belongs")
        argv = ["generate", "-m", str(bundle), "-p", "w1", "-n", "2", "--schedule", "dense"]
        assert run(argv) == 0
        assert run(argv) == 0
        err = capsys.readouterr().err
        assert err.count("every start checks them again") == 1
        assert self.hashed(bundle) == 0  # this process still knows
        forget()
        assert self.hashed(bundle) == 1

    def test_an_export_is_remembered(self, llama_checkpoint: Path, tmp_path: Path) -> None:
        pytest.importorskip("torch")
        from sol_rt.export import export_bundle

        export_bundle(str(llama_checkpoint), tmp_path / "out", calibration="none", bits=(4,), parity=False)
        assert self.hashed(tmp_path / "out") == 0
        forget()
        assert self.hashed(tmp_path / "out") == 0

    def test_sol_rt_verify_hashes_always_and_remembers(self, bundle: Path) -> None:
        assert run(["verify", "-m", str(bundle)]) == 0
        assert self.hashed(bundle) == 0
        flip(bundle / WEIGHTS, 100)
        verified.remember_weights(FileState.of(bundle / WEIGHTS), Bundle.open(bundle).config.files[WEIGHTS].sha256)
        assert run(["verify", "-m", str(bundle)]) == 1

    def test_an_export_remembers_the_file_that_it_hashed(
        self, llama_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("torch")
        from sol_rt.export import export_bundle, pipeline

        seal = pipeline.seal

        def seal_and_swap(folder: Path, config: SolConfig, weights: FileEntry, *others: Any) -> SolConfig:
            sealed = seal(folder, config, weights, *others)
            if weights.sha256 != "0" * 64:  # the last time
                replaced(folder / WEIGHTS, bytes(weights.bytes))
            return sealed

        monkeypatch.setattr(pipeline, "seal", seal_and_swap)
        export_bundle(str(llama_checkpoint), tmp_path / "out", calibration="none", bits=(4,), parity=False)
        with pytest.raises(BundleError, match="sha256"):
            self.hashed(tmp_path / "out")

    def test_processes_at_once_leave_a_whole_memory(self, made: Path, tmp_path: Path) -> None:
        copies = [Path(shutil.copytree(made, tmp_path / f"copy{number}")) for number in range(4)]
        program = (
            "import sys; from sol_rt.bundle.bundle import Bundle; from sol_rt.store.verified import check_weights\n"
        )
        program += "for _ in range(20): check_weights(Bundle.open(sys.argv[1]))"
        processes = [subprocess.Popen([sys.executable, "-c", program, str(copy)]) for copy in copies]
        assert [process.wait(60) for process in processes] == [0] * 4
        known = verified._remembered()
        assert known
        assert {record[3] for record in known.values()} == {sha256(made / WEIGHTS)}


class TestReplacedDuringTheCheck:
    """A file that takes the name of the one that is hashed is not used."""

    @pytest.fixture
    def swap(self, bundle: Path, tmp_path: Path) -> Callable[..., None]:
        """A progress callback that moves the bundle away, and puts one with damaged weights into its place."""
        other = Path(shutil.copytree(bundle, tmp_path / "other"))
        flip(other / WEIGHTS, 4000)

        def report(*progress: object) -> None:
            if other.exists():
                bundle.rename(tmp_path / "old")
                other.rename(bundle)

        return report

    def test_it_is_not_mapped(self, bundle: Path, swap: Callable[..., None]) -> None:
        checked, _ = verified.check_weights(Bundle.open(bundle), swap)
        with pytest.raises(BundleError, match="replaced meanwhile: load it again"):
            SharedWeights(checked)
        with pytest.raises(BundleError, match="sha256"):
            load(bundle)

    def test_sol_rt_verify_refuses_it(self, bundle: Path, swap: Callable[..., None]) -> None:
        with pytest.raises(BundleError, match="replaced meanwhile"):
            verify_bundle(bundle, swap)
        with pytest.raises(BundleError, match="sha256"):
            load(bundle)

    def test_one_that_is_written_to_is_refused(self, bundle: Path) -> None:
        with pytest.raises(BundleError, match="changes while it is read"):
            verified.check_weights(Bundle.open(bundle), lambda *progress: flip(bundle / WEIGHTS, 4000))

    def test_one_that_was_written_to_since_is_not_mapped(self, bundle: Path) -> None:
        checked, _ = verified.check_weights(Bundle.open(bundle))
        flip(bundle / WEIGHTS, 4000)
        with pytest.raises(BundleError, match="replaced meanwhile"):
            SolModel.from_pretrained(checked, measure_costs=False)

    def test_a_command_opens_the_bundle_once(self, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        opened: list[Path] = []

        def counted(path: Path, most: int) -> bytes:
            opened.append(path)
            return read_bytes(path, most)

        monkeypatch.setattr(bundle_module, "read_bytes", counted)
        assert run(["generate", "-m", str(bundle), "-p", "w1", "-n", "2", "--schedule", "dense"]) == 0
        assert [path.name for path in opened].count(CONFIG_NAME) == 1


class TestReplacedWhileInUse:
    @pytest.fixture
    def other(self, tmp_path: Path) -> Path:
        """Another bundle with the same layout."""
        return write_bundle(tmp_path / "other", policy=True, seed=1)

    def test_a_process_keeps_the_weights_that_it_mapped(self, bundle: Path, other: Path) -> None:
        model = load(bundle)
        before = model.generate([1, 2, 3], schedule="dense", max_new_tokens=20).tokens
        replaced(bundle / WEIGHTS, (other / WEIGHTS).read_bytes())
        assert model.generate([1, 2, 3], schedule="dense", max_new_tokens=20).tokens == before

    @pytest.mark.parametrize("native", [True, False])
    def test_what_is_opened_later_is_of_the_same_bundle_or_refused(
        self, native: bool, bundle: Path, other: Path, tmp_path: Path
    ) -> None:
        def action(model: SolModel) -> list[int]:
            return list(model.generate([1, 2, 3], schedule="fixed:k100-s050-q4", max_new_tokens=20).tokens)

        expected = action(SolModel.from_pretrained(bundle, native_ops=native, measure_costs=False))
        model = SolModel.from_pretrained(bundle, native_ops=native, measure_costs=False)
        bundle.rename(tmp_path / "old")
        other.rename(bundle)
        if native and model.native:  # the graphs are the same, and the weights are those that were mapped
            assert action(model) == expected
        else:
            with pytest.raises(BundleError, match="load the bundle again"):
                action(model)
        with pytest.raises(BundleError, match="load it again"):
            PolicySession(model.bundle)

    def test_a_tokenizer_that_was_replaced_is_not_read(self, bundle: Path) -> None:
        model = load(bundle)
        before = model.generate("w1", max_new_tokens=2).text
        replaced(bundle / "tokenizer.json", b"{}")
        assert model.generate("w1", max_new_tokens=2).text == before
        with pytest.raises(BundleError, match="replaced: load it again"):
            model.tokenizer.encode("w1")

    @pytest.mark.skipif(sys.platform == "win32", reason="Windows refuses to write to a mapped file")
    @pytest.mark.parametrize("cut", [False, True])
    def test_weights_that_are_written_to_in_place_are_refused(self, cut: bool, bundle: Path) -> None:
        model = load(bundle)
        model.generate([1, 2, 3], max_new_tokens=2)
        if cut:
            os.truncate(bundle / WEIGHTS, 4096)
        else:
            flip(bundle / WEIGHTS, 5000)
        with pytest.raises(BundleError, match="written to while in use"):
            model.generate([1, 2, 3], max_new_tokens=2)

    @pytest.mark.skipif(sys.platform == "win32", reason="Windows refuses to write to a mapped file")
    def test_no_token_comes_of_weights_that_were_written_to_meanwhile(self, bundle: Path, other: Path) -> None:
        model = load(bundle)
        stream = model.stream([1, 2, 3], schedule="dense", max_new_tokens=20)
        next(stream)
        with (bundle / WEIGHTS).open("r+b") as file:
            file.write((other / WEIGHTS).read_bytes())
        with pytest.raises(BundleError, match="written to while in use"):
            next(stream)

    def test_no_descriptor_is_left(self, bundle: Path) -> None:
        folder = Path("/proc/self/fd")
        if not folder.is_dir():
            pytest.skip("descriptors are counted on Linux")
        opened = Bundle.open(bundle)
        gc.collect()  # models of other tests
        before = len(list(folder.iterdir()))
        for _ in range(10):
            SharedWeights(opened)
        assert len(list(folder.iterdir())) == before


class TestDamageAtRandom:
    """A few of the damages of `damaged_weights.py`, which takes a bundle of any size."""

    def test_each_damage_is_refused_in_one_line(self, bundle: Path) -> None:
        refused, failures = damaged_weights.try_all(bundle, 10, seed=1)
        assert failures == []
        assert set(refused.values()) == {2}
        assert set(refused) == set(damaged_weights.KINDS)

    def test_a_damage_that_is_accepted_is_reported(self, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(damaged_weights.KINDS, "a flipped bit", lambda file, size, draw: None)
        _, failures = damaged_weights.try_all(bundle, 1, seed=1)
        assert failures == ["trial 0, a flipped bit: taken"]
