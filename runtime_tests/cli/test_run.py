"""`sol-rt run MODEL`: from a bundle, a ready bundle of the hub or a checkpoint to an answer, with one command."""

from __future__ import annotations

import inspect
import io
import os
import shutil
import sys
from pathlib import Path

import pytest

from helpers.tiny_bundle import write_bundle
from sol_rt.bundle.config import CONFIG_NAME
from sol_rt.cli import main
from sol_rt.cli.make.run import run
from sol_rt.cli.run.chat import chat
from sol_rt.progress import Progress
from sol_rt.store import pull
from sol_rt.store.home import remember_source

SHORT = ("-n", "5", "--temperature", "0")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnx", reason="writing a bundle comes with the extra export")
    return write_bundle(tmp_path_factory.mktemp("run") / "tiny")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in list(os.environ):
        if name.startswith("SOL_RT_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SOL_RT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def output(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> tuple[str, str]:
    assert main(argv) == code, capsys.readouterr().err
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_one_question_of_a_bundle(capsys: pytest.CaptureFixture[str], bundle: Path, home: Path) -> None:
    shutil.copytree(bundle, home / "bundles" / "tiny")
    expected = output(capsys, "chat", "-m", str(bundle), "-p", "w1 w2", *SHORT)[0]
    assert expected.strip()
    assert output(capsys, "run", str(bundle), "w1 w2", *SHORT)[0] == expected
    assert output(capsys, "run", "tiny", "-p", "w1 w2", *SHORT)[0] == expected


def test_a_conversation_and_the_options_of_chat(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, bundle: Path
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("w1\n/budget\n/system\n"))
    out, err = output(capsys, "run", str(bundle), *SHORT, "-b", "0.8", "--system", "w9")
    assert len(out.splitlines()) == 1
    assert err.splitlines()[-2:] == ["budget 0.8", "system message: w9"]


def test_run_has_every_option_of_chat() -> None:
    shown = inspect.signature(run).parameters
    assert set(shown) == {*inspect.signature(chat).parameters, "question"}
    assert all(parameter.kind is not parameter.VAR_KEYWORD for parameter in shown.values())


def test_a_ready_bundle_of_the_hub_is_fetched_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, bundle: Path, home: Path
) -> None:
    fetched: list[str] = []

    def from_hub(source: str, progress: Progress, **_: object) -> Path:
        fetched.append(source)
        progress("fetching", 1, 1)
        return Path(shutil.copytree(bundle, home / "bundles" / "small"))

    monkeypatch.setattr(pull, "pull", from_hub)
    out, err = output(capsys, "run", "someone/small", "w1", *SHORT)
    assert out.strip()
    assert "someone/small: not here yet; fetching it" in err
    assert output(capsys, "run", "someone/small", "w1", *SHORT)[0] == out
    assert fetched == ["someone/small"]


def test_a_bundle_of_another_source_is_not_taken_for_it(
    capsys: pytest.CaptureFixture[str], bundle: Path, home: Path, tmp_path: Path
) -> None:
    made = Path(shutil.copytree(bundle, home / "bundles" / "small"))
    remember_source(made, "someone/Small")
    answer = output(capsys, "run", "someone/Small", "w1", *SHORT)[0]
    assert answer.strip()
    (tmp_path / "small").mkdir()
    for other in ("else/small", "someone/Small@v2", str(tmp_path / "small")):
        out, err = output(capsys, "run", other, "w1", *SHORT, code=2)
        assert out == ""
        assert f"{other}: {made} was made from someone/Small" in err
        assert "use that one as small" in err
        for argv in (("export", "-m", other, "--target", "web"), ("train", "-m", other, "-d", str(tmp_path))):
            assert f"{other}: {made} was made from someone/Small" in output(capsys, *argv, code=2)[1]
    assert output(capsys, "run", "small", "w1", *SHORT)[0] == answer
    output(capsys, "rm", "--yes", "small")
    assert not list((home / "sources").iterdir())


def test_a_bundle_of_unknown_source_is_named(
    capsys: pytest.CaptureFixture[str], bundle: Path, home: Path, tmp_path: Path
) -> None:
    made = shutil.copytree(bundle, home / "bundles" / "small")
    remember_source(Path(made), "someone/small")
    config = made / CONFIG_NAME
    config.write_text(config.read_text().replace('"source": "random"', '"source": "else/small"'))  # another bundle now
    said = f"using {made}, which was made from else/small"
    assert said in output(capsys, "run", "someone/small", "w1", *SHORT)[1]
    assert said not in output(capsys, "run", "else/small", "w1", *SHORT)[1]


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (("no-such-model",), "no-such-model"),
        (("./nothing",), "no such file or folder"),
        (("tiny", "w1", "-p", "w2"), "give one"),
        (("tiny", ""), "the question is empty"),
        ((), "Missing argument"),
    ],
)
def test_wrong_usage_is_one_line(
    capsys: pytest.CaptureFixture[str], home: Path, argv: tuple[str, ...], part: str
) -> None:
    out, err = output(capsys, "run", *argv, code=2)
    assert out == ""
    assert err.startswith("sol-rt: error: ")
    assert part in err
    assert len(err.splitlines()) == 1
    assert not home.exists()


@pytest.mark.slow
def test_a_checkpoint_is_exported_first(
    capsys: pytest.CaptureFixture[str], llama_checkpoint: Path, home: Path, tmp_path: Path
) -> None:
    source = tmp_path / "Small"
    shutil.copytree(llama_checkpoint, source)
    (source / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }} {% endfor %}")
    out, err = output(capsys, "run", str(source), "Hello", *SHORT)
    made = home / "bundles" / "small"
    assert str(made) not in out, "stdout is the answer alone"
    assert f"no bundle yet; exporting it to {made}" in err
    assert output(capsys, "run", str(source), "Hello", *SHORT)[0] == out
    other = tmp_path / "elsewhere" / "Small"
    shutil.copytree(source, other)
    assert f"was made from {source}" in output(capsys, "run", str(other), "Hello", *SHORT, code=2)[1]
