"""Pulling and pushing ready bundles, against a local server that speaks the hub's protocol."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from signal import SIGKILL

import pin_recipe
import pytest

from helpers.commands import fails
from sol_rt.atomic_write import TEMPORARY
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import CONFIG_NAME
from sol_rt.cli import main
from sol_rt.errors import BundleError, HubError, HubUnreachableError, SolError, UsageError
from sol_rt.store import download, home, verified
from sol_rt.store.pull import bundle_name, pull, resolve

pytest.importorskip("onnx", reason="the tiny bundle's graphs are written with onnx")

from helpers.hub_server import LICENSES, READER, WRITER, Hub, running_hub
from helpers.program import started
from helpers.tiny_bundle import write_bundle

WEIGHTS = "weights.bin"
REPO = "someone/Tiny-Bundle"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bundle with a card. Not to be written to."""
    folder = tmp_path_factory.mktemp("hub") / "tiny"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: other\n---\n# tiny\n", encoding="utf-8")
    return write_bundle(folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub without repositories, an empty home and no token."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    for name in list(os.environ):
        if name.startswith(("SOL_RT_", "HF_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SOL_RT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    with running_hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server
        huggingface_hub.close_session()
        assert not server.unknown, "requests to something that the server does not have"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def stored(kind: str = "bundles") -> list[str]:
    """Everything under a folder of the home, hidden files too."""
    folder = home.home() / kind
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")) if folder.exists() else []


def quiet(step: str, done: float, total: float) -> None:
    assert 0 <= done <= total


def with_config(files: dict[str, bytes], change: Callable[[dict], object]) -> dict[str, bytes]:
    """The files, with a changed `sol_config.json`."""
    document = json.loads(files[CONFIG_NAME])
    change(document)
    return {**files, CONFIG_NAME: json.dumps(document).encode()}


class TestPullOfABundle:
    def test_it_is_fetched_and_runs(self, hub: Hub, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
        hub.repository(REPO, {**contents(tiny), ".gitattributes": b"", "notes.txt": b"not of the bundle"})
        assert main(["pull", REPO]) == 0
        out, err = capsys.readouterr()
        target = home.bundles_dir() / "tiny-bundle"
        assert out == f"{target}\n"
        assert f"{len(contents(tiny)) - 1} files, " in err
        assert contents(target) == contents(tiny), "just the files of the config"
        assert stored() == ["tiny-bundle", *sorted(f"tiny-bundle/{name}" for name in contents(tiny))]
        assert home.find_bundle(None) == target
        assert main(["generate", "-p", "w1 w2", "-n", "3", "--json"]) == 0, "the pulled bundle is the default"
        assert len(json.loads(capsys.readouterr().out)["tokens"]) == 3

    def test_the_weights_that_were_hashed_are_remembered_and_no_others(
        self, hub: Hub, tiny: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hub.repository(REPO, contents(tiny))
        put_in_place = download.put_in_place

        def hashed(path: Path) -> int:
            steps: list[str] = []
            verified._here.clear()  # as in a new process
            verified.check_weights(Bundle.open(path), lambda step, done, total: steps.append(step))
            return len(steps)

        def put_and_swap(folder: Path, target: Path) -> None:
            put_in_place(folder, target)
            (target / "aside").write_bytes(bytes((target / WEIGHTS).stat().st_size))
            (target / "aside").replace(target / WEIGHTS)

        assert hashed(pull(REPO, quiet)) == 0
        (home.home() / verified.STATE).unlink()
        assert hashed(pull(REPO, quiet)) == 0  # it was there already
        hub.repository("else/other", contents(tiny))
        monkeypatch.setattr(download, "put_in_place", put_and_swap)
        with pytest.raises(BundleError, match="sha256"):
            hashed(pull("else/other", quiet))

    def test_run_takes_the_bundle_of_this_repository_alone(
        self, hub: Hub, tiny: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        hub.repository(REPO, contents(tiny))
        assert main(["run", REPO, "w1", "-n", "2"]) == 0
        hub.requests.clear()
        capsys.readouterr()
        assert main(["run", REPO, "w1", "-n", "2"]) == 0
        assert "using" not in capsys.readouterr().err
        fails(capsys, ["run", "else/tiny-bundle", "w1"], 2, f"tiny-bundle was made from {REPO}")
        assert hub.requests == []

    def test_the_config_comes_first_and_large_files_last(self, hub: Hub, tiny: Path) -> None:
        hub.repository(REPO, contents(tiny))
        pull(REPO, quiet)
        fetched = [each.path.rpartition("/")[2] for each in hub.requests if each.status == 200]
        assert fetched[1] == CONFIG_NAME
        sizes = [len(contents(tiny)[name]) for name in fetched[2:]]
        assert sizes == sorted(sizes)

    def test_progress_is_of_the_whole(self, hub: Hub, tiny: Path) -> None:
        hub.repository(REPO, contents(tiny))
        calls: list[tuple[str, float, float]] = []
        pull(REPO, lambda *call: calls.append(call))
        total = sum(len(content) for name, content in contents(tiny).items() if name != CONFIG_NAME)
        assert {call[0] for call in calls} == {f"fetching {REPO}"}
        assert {call[2] for call in calls} == {total}
        done = [call[1] for call in calls]
        assert done == sorted(done)
        assert done[-1] == total

    def test_an_equal_bundle_is_kept(self, hub: Hub, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
        hub.repository(REPO, contents(tiny))
        target = pull(REPO, quiet)
        before = (target / WEIGHTS).stat().st_ino
        hub.requests.clear()
        assert main(["pull", REPO]) == 0
        assert "the same bundle already" in capsys.readouterr().err
        assert not hub.content_requests(WEIGHTS)
        assert (target / WEIGHTS).stat().st_ino == before

    def test_a_file_damaged_here_is_fetched_again(self, hub: Hub, tiny: Path) -> None:
        hub.repository(REPO, contents(tiny))
        target = pull(REPO, quiet)
        (target / WEIGHTS).write_bytes(bytes(len(contents(tiny)[WEIGHTS])))
        pull(REPO, quiet)
        assert contents(target) == contents(tiny)

    def test_another_bundle_of_the_name_needs_force(
        self, hub: Hub, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        other = contents(write_bundle(tmp_path / "other", seed=1))
        target = home.bundles_dir() / "tiny-bundle"
        shutil.copytree(tiny, target)
        hub.repository(REPO, other)
        fails(capsys, ["pull", REPO], 2, "another bundle; replace it with --force")
        assert contents(target) == contents(tiny)
        assert main(["pull", REPO, "--force"]) == 0
        assert contents(target) == other
        assert {name.partition("/")[0] for name in stored()} == {"tiny-bundle"}

    def test_remains_of_a_killed_replacement_are_removed(self, hub: Hub, tiny: Path, tmp_path: Path) -> None:
        hub.repository(REPO, contents(write_bundle(tmp_path / "other", seed=1)))
        target = home.bundles_dir() / "tiny-bundle"
        shutil.copytree(tiny, target)
        swapped = home.bundles_dir() / download.UNFINISHED / REPO.replace("/", "--")
        swapped.mkdir(parents=True)
        (swapped / WEIGHTS).write_bytes(b"of the bundle before")
        moved = home.bundles_dir() / f".tiny-bundle.1-1{TEMPORARY}"
        moved.mkdir()
        (moved / WEIGHTS).write_bytes(b"of the bundle before")
        pull(REPO, quiet, replace=True)
        assert contents(target) == contents(tmp_path / "other")
        assert {name.partition("/")[0] for name in stored()} == {"tiny-bundle"}

    def test_a_folder_that_is_no_bundle_stays(self, hub: Hub, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
        hub.repository(REPO, contents(tiny))
        (home.bundles_dir() / "tiny-bundle").mkdir(parents=True)
        (home.bundles_dir() / "tiny-bundle" / "mine").write_text("mine")
        fails(capsys, ["pull", REPO, "--force"], 2, "is there already and no bundle")
        assert stored() == ["tiny-bundle", "tiny-bundle/mine"]

    def test_a_token_does_not_leave_the_hub(self, hub: Hub, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        hub.repository(REPO, contents(tiny), private=True)
        monkeypatch.setenv("HF_TOKEN", WRITER)
        pull(REPO, quiet)
        elsewhere = [each for each in hub.requests if each.path.startswith("/cdn/")]
        assert elsewhere
        assert not any(each.authorized for each in elsewhere)
        assert all(each.authorized for each in hub.requests if each not in elsewhere)

    def test_the_hub_learns_nothing_of_the_machine(self, hub: Hub, tiny: Path) -> None:
        pytest.importorskip("torch", reason="the client would name torch")
        hub.repository(REPO, contents(tiny))
        pull(REPO, quiet)
        assert all(each.agent.startswith("sol_rt/") for each in hub.requests)
        assert not any("torch" in each.agent for each in hub.requests)

    def test_commands_that_need_no_hub_do_not_load_its_client(self) -> None:
        code = "import sol_rt.cli.app, sol_rt.store.pull, sys; print('huggingface_hub' in sys.modules)"
        assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"


class TestRevisions:
    def test_branches_and_commits(self, hub: Hub, tiny: Path, tmp_path: Path) -> None:
        repository = hub.repository(REPO, contents(tiny))
        first = repository.heads["main"]
        newer = contents(write_bundle(tmp_path / "newer", seed=1))
        repository.commit(newer)
        repository.commit(contents(tiny), "refs/pr/1")
        assert contents(pull(f"{REPO}@{first}", quiet)) == contents(tiny)
        assert contents(pull(REPO, quiet, replace=True)) == newer
        assert contents(pull(f"{REPO}@refs/pr/1", quiet, replace=True)) == contents(tiny)
        assert bundle_name(f"{REPO}@refs/pr/1") == "tiny-bundle"

    def test_an_unknown_revision(self, hub: Hub, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
        hub.repository(REPO, contents(tiny))
        fails(capsys, ["pull", f"{REPO}@v9"], 1, f"{REPO}@v9: no such revision")
        assert stored() == []


class TestInterruptions:
    @pytest.mark.skipif(sys.platform == "win32", reason="sends SIGKILL")
    def test_killed_in_mid_file(self, hub: Hub, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
        size = len(contents(tiny)[WEIGHTS])
        hub.repository(REPO, contents(tiny))
        hub.pause_at[WEIGHTS] = size // 2
        with started("pull", REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert hub.paused.wait(60)
            part = home.bundles_dir() / download.UNFINISHED
            # the server has sent half of the file; wait until most of it is on the disk
            while sum(path.stat().st_size for path in part.rglob(f"{WEIGHTS}.*")) < size // 4:
                assert process.poll() is None
            process.send_signal(SIGKILL)
            process.wait()
        hub.go_on.set()
        hub.pause_at.clear()
        assert home.bundle_names() == []
        assert any(name.endswith(".part") for name in stored())
        with pytest.raises(UsageError, match="no model"):
            home.find_bundle(None)
        hub.requests.clear()

        assert main(["pull", REPO]) == 0
        assert " of them here" in capsys.readouterr().err
        (request,) = hub.content_requests(WEIGHTS)
        assert request.status == 206
        assert request.sent <= size - size // 4, "what was here is not sent again"
        assert contents(home.bundles_dir() / "tiny-bundle") == contents(tiny)
        assert not [name for name in stored() if not name.startswith("tiny-bundle")]
        sent = {each.path.rpartition("/")[2] for each in hub.requests if each.path.startswith(("/cdn/", "/someone/"))}
        assert sent == {CONFIG_NAME, WEIGHTS}, "finished files are not sent again"

    def test_a_connection_that_breaks_is_made_again(self, hub: Hub, tiny: Path) -> None:
        size = len(contents(tiny)[WEIGHTS])
        hub.repository(REPO, contents(tiny))
        hub.cut_at[WEIGHTS] = size // 2
        assert contents(pull(REPO, quiet)) == contents(tiny)
        first, second = hub.content_requests(WEIGHTS)
        assert (first.status, second.status) == (200, 206)
        assert first.sent + second.sent == size

    def test_a_server_without_ranges(self, hub: Hub, tiny: Path) -> None:
        hub.repository(REPO, contents(tiny))
        hub.cut_at[WEIGHTS] = len(contents(tiny)[WEIGHTS]) // 2
        hub.ignore_ranges = True
        assert contents(pull(REPO, quiet)) == contents(tiny)

    def test_a_part_of_an_older_file_is_not_continued(self, hub: Hub, tiny: Path, tmp_path: Path) -> None:
        hub.repository(REPO, contents(tiny))
        folder = home.bundles_dir() / download.UNFINISHED / REPO.replace("/", "--")
        folder.mkdir(parents=True)
        (folder / f"{WEIGHTS}.0123456789abcdef.part").write_bytes(b"old")
        (folder / WEIGHTS).write_bytes(b"damaged")
        assert contents(pull(REPO, quiet)) == contents(tiny)

    def test_a_part_that_went_bad_here_is_fetched_anew(self, hub: Hub, tiny: Path) -> None:
        files = contents(tiny)
        hub.repository(REPO, files)
        folder = home.bundles_dir() / download.UNFINISHED / REPO.replace("/", "--")
        folder.mkdir(parents=True)
        part = folder / f"{WEIGHTS}.{hashlib.sha256(files[WEIGHTS]).hexdigest()[:16]}.part"
        for bad in (bytes(len(files[WEIGHTS]) // 2), bytes(len(files[WEIGHTS]) + 1)):
            hub.requests.clear()
            part.write_bytes(bad)
            assert contents(pull(REPO, quiet)) == files
            assert hub.content_requests(WEIGHTS)[-1].sent == len(files[WEIGHTS])
            shutil.rmtree(home.bundles_dir() / "tiny-bundle")
            folder.mkdir(parents=True)

    @pytest.mark.parametrize("with_files", [False, True])
    def test_killed_after_the_last_rename(self, hub: Hub, tiny: Path, with_files: bool) -> None:
        hub.repository(REPO, contents(tiny))
        pull(REPO, quiet)
        folder = home.bundles_dir() / download.UNFINISHED
        folder.mkdir()
        (folder / "someone--Tiny-Bundle.lock").touch()
        if with_files:
            (folder / "someone--Tiny-Bundle").mkdir()
            (folder / "someone--Tiny-Bundle" / WEIGHTS).write_bytes(b"begun")
        pull(REPO, quiet)
        assert not folder.exists()

    def test_an_equal_bundle_leaves_another_download_alone(self, hub: Hub, tiny: Path) -> None:
        from filelock import FileLock

        hub.repository(REPO, contents(tiny))
        pull(REPO, quiet)
        folder = home.bundles_dir() / download.UNFINISHED / "someone--Tiny-Bundle"
        folder.mkdir(parents=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            pull(REPO, quiet)
            assert folder.exists()

    def test_two_pulls_at_once(self, hub: Hub, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
        from filelock import FileLock

        hub.repository(REPO, contents(tiny))
        folder = home.bundles_dir() / download.UNFINISHED
        folder.mkdir(parents=True)
        with FileLock(folder / "someone--Tiny-Bundle.lock"):
            fails(capsys, ["pull", REPO], 1, "another process is fetching it")


_ENTRY = f'"size": 1, "blobId": "{40 * "0"}"'
_NO_SIBLINGS = ["3", "[3]", "[{}]", f'[{{"rfilename": null, {_ENTRY}}}]', f'[{{"rfilename": 3, {_ENTRY}}}]',
                f'[{{"rfilename": "a", "lfs": 5, {_ENTRY}}}]']  # fmt: skip


class TestRefusals:
    def test_a_damaged_config(self, hub: Hub, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
        files = contents(tiny)
        hub.repository(REPO, files)
        hub.served_instead[CONFIG_NAME] = files[CONFIG_NAME].replace(b'"tests"', b'"testz"')
        fails(capsys, ["pull", REPO], 1, f"{CONFIG_NAME}: got hash ", "damaged file; pull again, or tell its owner")
        assert stored() == []

    @pytest.mark.parametrize("name", [WEIGHTS, "tokenizer.json"])
    def test_a_damaged_file(self, hub: Hub, tiny: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
        files = contents(tiny)
        hub.repository(REPO, files)
        hub.served_instead[name] = files[name][:-1] + bytes([files[name][-1] ^ 1])
        fails(capsys, ["pull", REPO], 1, f"{name}: got hash ", hashlib.sha256(files[name]).hexdigest())
        assert stored() == []
        with pytest.raises(UsageError, match="no model"):
            home.find_bundle(None)

    @pytest.mark.parametrize("change", [-1, 1])
    def test_a_file_of_another_length(
        self, hub: Hub, tiny: Path, capsys: pytest.CaptureFixture[str], change: int
    ) -> None:
        files = contents(tiny)
        hub.repository(REPO, files)
        hub.served_instead[WEIGHTS] = (files[WEIGHTS] + b"x")[: len(files[WEIGHTS]) + change]
        fails(capsys, ["pull", REPO], 1, WEIGHTS)
        assert home.bundle_names() == []

    def test_a_file_that_the_push_left_out(self, hub: Hub, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
        files = contents(tiny)
        hub.repository(REPO, {name: content for name, content in files.items() if name != WEIGHTS})
        fails(capsys, ["pull", REPO], 1, f"{WEIGHTS}: got no such file, expected {len(files[WEIGHTS])} bytes")
        hub.repository(REPO, {**files, WEIGHTS: b"short"})
        fails(capsys, ["pull", REPO], 1, f"{WEIGHTS}: got 5 bytes, expected {len(files[WEIGHTS])} bytes")
        assert stored() == []

    @pytest.mark.parametrize("name", ["../x", "a/b", "/etc/x", ".hidden", "..", CONFIG_NAME])
    def test_file_names_that_lead_elsewhere(
        self, hub: Hub, tiny: Path, capsys: pytest.CaptureFixture[str], name: str
    ) -> None:
        files = contents(tiny)
        evil = with_config(files, lambda document: document["files"].update({name: document["files"][WEIGHTS]}))
        hub.repository(REPO, {**evil, name: files[WEIGHTS]} if name != CONFIG_NAME else evil)
        fails(capsys, ["pull", REPO], 1, f"{REPO}: {CONFIG_NAME}: files", "a plain file name inside the bundle")
        assert stored() == []
        assert not hub.content_requests(WEIGHTS), "the config is read before anything else"

    @pytest.mark.parametrize(
        ("change", "part"),
        [
            (lambda document: document.update(format_version=99), "format_version: got 99"),
            (lambda document: document.update(surprise=1), "surprise: got an unknown key"),
            (lambda document: document["model"].pop("vocab_size"), "model.vocab_size: got no such key"),
        ],
    )
    def test_a_config_that_is_not_one(
        self, hub: Hub, tiny: Path, capsys: pytest.CaptureFixture[str], change: Callable[[dict], object], part: str
    ) -> None:
        hub.repository(REPO, with_config(contents(tiny), change))
        fails(capsys, ["pull", REPO], 1, part)
        hub.repository(REPO, {**contents(tiny), CONFIG_NAME: b"\xff{"})
        fails(capsys, ["pull", REPO], 1, "not JSON")
        assert stored() == []

    def test_repositories_without_a_model_are_refused(self, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
        hub.repository("someone/data", {"README.md": b"#", "train.csv": b"1,2"})
        fails(capsys, ["pull", "someone/data"], 1, "neither a bundle (sol_config.json) nor a checkpoint")
        assert stored() == stored("checkpoints") == []

    def test_unknown_private_and_gated(
        self, hub: Hub, tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hub.repository("someone/secret", contents(tiny), private=True)
        hub.repository("someone/gated", contents(tiny), gated=True)
        for token in ("", READER):
            monkeypatch.setenv("HF_TOKEN", token)
            fails(capsys, ["pull", "someone/nothing"], 1, "no such repository", "HF_TOKEN")
            fails(capsys, ["pull", "someone/secret"], 1, "no such repository", "HF_TOKEN")
            fails(capsys, ["pull", "someone/gated"], 1, "gated; accept its terms at http", "HF_TOKEN")
        monkeypatch.setenv("HF_TOKEN", "hf_of_yesterday")
        fails(capsys, ["pull", "someone/gated"], 1, "401", "the token is not accepted")
        assert stored() == []
        monkeypatch.setenv("HF_TOKEN", WRITER)
        assert main(["pull", "someone/gated"]) == 0

    def test_no_network(
        self, hub: Hub, tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        fails(capsys, ["pull", REPO], 1, "http://127.0.0.1:9 can't be reached")
        monkeypatch.setenv("HF_ENDPOINT", f"{hub.url}/nothing-of-a-hub")
        fails(capsys, ["pull", REPO], 1, "404")
        assert len(hub.unknown) == 1
        hub.unknown.clear()

    @pytest.mark.parametrize(
        "answer",
        ["{", "<html>", "[]", "null", '"x"', "{}", "3"]
        + [f'{{"id": "me/tiny", "sha": "{40 * "0"}", "siblings": {siblings}}}' for siblings in _NO_SIBLINGS],
    )
    def test_a_server_that_is_no_hub_is_refused(
        self, hub: Hub, capsys: pytest.CaptureFixture[str], answer: str
    ) -> None:
        hub.info_instead = answer.encode()
        fails(capsys, ["pull", REPO], 1, f"{REPO}: {hub.url} does not answer as a model hub (")

    def test_offline_mode_is_refused_in_one_line(self, hub: Hub, tiny: Path, tmp_path: Path) -> None:
        settings = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_TOKEN": WRITER}
        for argv in (["pull", REPO], ["push", str(tiny), REPO]):
            run = subprocess.run(
                [sys.executable, "-m", "sol_rt", *argv], env=settings, capture_output=True, text=True, check=False
            )
            assert run.returncode == 1
            assert run.stderr.startswith(f"sol-rt: error: {REPO}: HF_HUB_OFFLINE is set")
            assert run.stderr.count("\n") == 1
        assert hub.requests == []

    def test_a_home_that_can_not_be_written(
        self, hub: Hub, tiny: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        hub.repository(REPO, contents(tiny))
        (tmp_path / "home").write_text("a file where a folder belongs")
        fails(capsys, ["pull", REPO], 1, str(tmp_path / "home"), "set SOL_RT_HOME to another folder")

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
    def test_a_read_only_home(self, hub: Hub, tiny: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        hub.repository(REPO, contents(tiny))
        (tmp_path / "home").mkdir(mode=0o555)
        fails(capsys, ["pull", REPO], 1, "set SOL_RT_HOME to another folder")

    def test_a_full_disk(
        self, hub: Hub, tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hub.repository(REPO, contents(tiny))
        usage = shutil.disk_usage(tiny)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10_000))
        fails(capsys, ["pull", REPO], 1, "needs ", "0.0 MB free; make room")
        assert stored() == []
        assert not hub.content_requests(WEIGHTS)

    @pytest.mark.parametrize("name", ["../x", "a/b/c", "x@y", "owner/", "owner/name@", "-a/b"])
    def test_names_that_are_no_hub_id_are_refused(
        self, hub: Hub, capsys: pytest.CaptureFixture[str], name: str
    ) -> None:
        fails(capsys, ["pull", "--", name], 2, "owner/name")
        assert hub.requests == []


class TestCheckpoints:
    FILES = {  # noqa: RUF012
        "config.json": b'{"model_type": "llama"}',
        "model.safetensors": bytes(range(256)) * 40,
        "tokenizer.json": b"{}",
        "pytorch_model.bin": b"not wanted" * 1000,
        "onnx/model.json": b"not wanted",
    }
    WANTED = ("config.json", "model.safetensors", "tokenizer.json")

    def test_it_is_fetched_kept_and_updated(self, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
        repository = hub.repository("someone/model", self.FILES)
        assert main(["pull", "someone/model"]) == 0
        out, err = capsys.readouterr()
        assert "next: sol-rt export -m someone/model" in err
        folder = home.checkpoints_dir() / "someone--model"
        assert out == f"{folder}\n"
        wanted = {name: self.FILES[name] for name in self.WANTED}
        assert contents(folder) == wanted
        with pytest.raises(UsageError, match="no model"):
            home.find_bundle(None)
        hub.requests.clear()
        assert resolve("someone/model", quiet) == (folder, "model")
        assert not hub.content_requests("model.safetensors")
        repository.commit({**self.FILES, "model.safetensors": b"new" * 2000})
        assert pull("someone/model", quiet) == folder
        assert contents(folder) == {**wanted, "model.safetensors": b"new" * 2000}

    def test_it_continues_and_is_checked(self, hub: Hub) -> None:
        hub.repository("someone/model", self.FILES)
        weights = self.FILES["model.safetensors"]
        hub.served_instead["model.safetensors"] = weights[:-1] + b"?"
        with pytest.raises(HubError, match=r"model\.safetensors: got hash"):
            pull("someone/model", quiet)
        assert stored("checkpoints") == []
        hub.served_instead["tokenizer.json"] = b"[]"
        with pytest.raises(HubError, match=r"tokenizer\.json: got hash"):
            pull("someone/model", quiet)

    def test_a_fetched_checkpoint_serves_without_network(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        hub.repository("someone/model", self.FILES)
        folder = pull("someone/model", quiet)
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        said: list[str] = []
        assert pull("someone/model", quiet, say=said.append) == folder
        assert "can't be reached" in said[0]
        with pytest.raises(HubUnreachableError, match=r"offline, -m takes a checkpoint folder or a \.gguf file"):
            pull("someone/other", quiet)

    @pytest.fixture
    def recipe(self, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """The file of the recipe `small`, pinned to what the hub holds now."""
        hub.repository("someone/model", self.FILES)
        path = tmp_path / "models" / "small.json"
        path.parent.mkdir()
        path.write_text(
            json.dumps({"name": "small", "description": "", "license": "MIT", "hub": "someone/model"}), encoding="utf-8"
        )
        assert pin_recipe.main(["small"], path.parent) == 0
        monkeypatch.setattr("importlib.resources.files", lambda package: path.parent)
        return path

    def test_a_pinned_recipe_fetches_what_it_pins(self, hub: Hub, recipe: Path) -> None:
        pinned = json.loads(recipe.read_text())["files"]
        assert pinned == {name: hashlib.sha256(self.FILES[name]).hexdigest() for name in self.WANTED}
        folder = pull("small", quiet)
        assert contents(folder) == {name: self.FILES[name] for name in self.WANTED}
        hub.repository("someone/model", self.FILES).commit({**self.FILES, "extra.json": b"{}"})
        assert contents(pull("small", quiet)) == {name: self.FILES[name] for name in self.WANTED}

    @pytest.mark.parametrize("name", WANTED)
    def test_a_pinned_recipe_refuses_anything_else(self, name: str, hub: Hub, recipe: Path) -> None:
        document = json.loads(recipe.read_text())
        document["files"][name] = hashlib.sha256(b"another").hexdigest()
        recipe.write_text(json.dumps(document))
        with pytest.raises(HubError, match=re.escape(name)):
            pull("small", quiet)
        assert stored("checkpoints") == []

    def test_a_pinned_checkpoint_is_checked_without_network_too(
        self, hub: Hub, recipe: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = pull("small", quiet)
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        assert pull("small", quiet) == folder
        (folder / "tokenizer.json").write_bytes(b"[]")
        with pytest.raises(HubError, match="which the recipe pins"):
            pull("small", quiet)

    @pytest.mark.parametrize("files", [{"../a": "0" * 64}, {"a.json": "0" * 63}, {"a.json": 3}])
    def test_a_recipe_with_wrong_pins_is_one_line(self, files: object, recipe: Path) -> None:
        recipe.write_text(json.dumps({**json.loads(recipe.read_text()), "files": files}))
        with pytest.raises(SolError, match="expected file names with their sha256"):
            pull("small", quiet)

    def test_revisions_do_not_mix(self, hub: Hub) -> None:
        repository = hub.repository("someone/model", self.FILES)
        repository.commit({**self.FILES, "tokenizer.json": b"[1]"}, "v2")
        assert pull("someone/model", quiet) != pull("someone/model@v2", quiet)

    def test_an_export_refuses_a_bundle_before_it_fetches_it(self, hub: Hub, tiny: Path) -> None:
        hub.repository(REPO, contents(tiny))
        with pytest.raises(UsageError, match=f"a ready bundle, no checkpoint; run sol-rt pull {REPO}"):
            resolve(REPO, quiet)
        assert not hub.content_requests(CONFIG_NAME)


@pytest.mark.parametrize(
    ("name", "expected"), [("Apache-2.0", "apache-2.0"), ("Llama-3.2", "llama3.2"), ("", "other"), ("Own", "other")]
)
def test_the_card_names_licences_as_the_hub_does(name: str, expected: str) -> None:
    pytest.importorskip("torch", reason="the card's module comes with the extra export")
    from sol_rt.export.card import hub_license

    assert hub_license(name) == expected
    assert expected in LICENSES


class TestPush:
    @pytest.fixture(autouse=True)
    def token(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_TOKEN", WRITER)

    def test_push_and_pull_give_the_same_bundle(self, hub: Hub, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["push", str(tiny), REPO]) == 0
        assert capsys.readouterr().out == f"{hub.url}/{REPO}\n"
        assert not hub.repositories[REPO].private
        assert set(hub.repositories[REPO].files()) == {".gitattributes", *contents(tiny)}
        assert contents(pull(REPO, quiet)) == contents(tiny)

    def test_a_second_push_sends_nothing(self, hub: Hub, tiny: Path) -> None:
        assert main(["push", str(tiny), REPO]) == 0
        commits = len(hub.repositories[REPO].commits)
        hub.requests.clear()
        assert main(["push", str(tiny), REPO]) == 0
        assert len(hub.repositories[REPO].commits) == commits

    def test_a_newer_bundle_by_name(self, hub: Hub, tiny: Path, tmp_path: Path) -> None:
        assert main(["push", str(tiny), REPO]) == 0
        write_bundle(home.bundles_dir() / "newer", seed=1)
        assert main(["push", "newer", REPO]) == 0
        assert contents(pull(REPO, quiet)) == contents(home.bundles_dir() / "newer")

    def test_private_and_revision(self, hub: Hub, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["push", str(tiny), REPO, "--private", "--revision", "trial"]) == 0
        assert capsys.readouterr().out == f"{hub.url}/{REPO}/tree/trial\n"
        assert hub.repositories[REPO].private
        assert set(hub.repositories[REPO].files()) == {".gitattributes"}
        assert contents(pull(f"{REPO}@trial", quiet)) == contents(tiny)

    def test_private_does_not_pass_over_a_public_repository(
        self, hub: Hub, tiny: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        hub.repository(REPO, {})
        fails(capsys, ["push", str(tiny), REPO, "--private"], 2, "there already, and public")
        assert hub.repositories[REPO].files() == {}

    def test_a_repository_of_something_else(self, hub: Hub, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
        hub.repository(REPO, TestCheckpoints.FILES)
        fails(capsys, ["push", str(tiny), REPO], 2, "holds files but no bundle")
        assert hub.repositories[REPO].files() == TestCheckpoints.FILES

    def test_a_damaged_bundle(self, hub: Hub, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        shutil.copytree(tiny, tmp_path / "damaged")
        (tmp_path / "damaged" / WEIGHTS).write_bytes(bytes(len(contents(tiny)[WEIGHTS])))
        fails(capsys, ["push", str(tmp_path / "damaged"), REPO], 1, WEIGHTS, "sha256")
        assert hub.requests == []

    def test_a_card_that_the_hub_refuses(
        self, hub: Hub, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "bundle").mkdir()
        (tmp_path / "bundle" / "README.md").write_text("---\nlicense: Apache-2.0\n---\n")
        write_bundle(tmp_path / "bundle")
        fails(capsys, ["push", str(tmp_path / "bundle"), REPO], 1, '"license" must be one of')
        assert hub.uploads == {}

    def test_a_storage_that_refuses(self, hub: Hub, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
        hub.refuse_uploads = True
        fails(capsys, ["push", str(tiny), REPO], 1, "403 (the storage says no)")
        assert set(hub.repositories[REPO].files()) == {".gitattributes"}

    def test_tokens_without_rights_are_refused(
        self, hub: Hub, tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hub.repository("someone/public", {})
        monkeypatch.setenv("HF_TOKEN", READER)
        fails(capsys, ["push", str(tiny), "someone/public"], 1, "403", "the token does not permit this")
        fails(capsys, ["push", str(tiny), REPO], 1, "403", "the token does not permit this")
        monkeypatch.setenv("HF_TOKEN", "hf_of_yesterday")
        fails(capsys, ["push", str(tiny), REPO], 1, "401", "the token is not accepted")
        monkeypatch.delenv("HF_TOKEN")
        hub.requests.clear()
        fails(capsys, ["push", str(tiny), REPO], 1, "no token; set HF_TOKEN")
        assert hub.requests == []
        assert set(hub.repositories) == {"someone/public"}

    def test_no_network(
        self, hub: Hub, tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        fails(capsys, ["push", str(tiny), REPO], 1, "can't be reached")

    def test_names_that_are_no_hub_id_are_refused(
        self, hub: Hub, tiny: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        fails(capsys, ["push", str(tiny), "name"], 2, "expected a hub id owner/name")
        fails(capsys, ["push", "no-such-bundle", REPO], 2, "no-such-bundle")
