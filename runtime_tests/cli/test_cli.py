"""The command line: exit codes, one-line errors, what goes to which stream."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from helpers.commands import fails
from helpers.places import ROOT, TINY
from helpers.tiny_bundle import write_bundle
from sol_rt import __version__
from sol_rt.bundle.bundle import Bundle
from sol_rt.cli import main
from sol_rt.cli.app import COMMANDS, make_app
from sol_rt.native.simd_targets import check_simd_targets
from sol_rt.store.home import remember_last_export


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home and none of the caller's settings."""
    for name in list(os.environ):
        if name.startswith("SOL_RT_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SOL_RT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_the_page_of_the_command_line_has_every_option_with_a_variable() -> None:
    page = (ROOT / "docs/reference/cli.md").read_text(encoding="utf-8")
    section = page.partition("These options have a variable:")[2].partition("Options that name files")[0]
    commands = typer.main.get_command(make_app(COMMANDS)).commands.values()  # type: ignore[attr-defined]
    options = [option for command in commands for option in command.params if getattr(option, "envvar", None)]
    flags = {next(flag for flag in option.opts if flag.startswith("--")) for option in options}
    assert set(re.findall(r"`(--[\w-]+)`", section)) == flags


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"sol-rt {__version__}\n"


def test_without_a_command_help_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "generate" in err


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["nonsense"], "nonsense"),
        (["generate", "--budgett", "0.3"], "--budgett"),
        (["generate", "--budget", "1.5"], "--budget"),
        (["generate", "--budget", "much"], "expected a share of the dense cost from 0 to 1, for example 0.3; got much"),
        (["generate", "-b", "nan"], "expected a share of the dense cost from 0 to 1, for example 0.3; got nan"),
        (["generate", "--max-loss", "200%"], "dense perplexity from 0 to 1, for example 0.02 or 2%; got 200%"),
        (["generate", "--max-loss", "2"], "dense perplexity from 0 to 1, for example 0.02 or 2%; got 2"),
        (["chat", "--max-loss", "much"], "dense perplexity from 0 to 1, for example 0.02 or 2%; got much"),
        (["generate", "-n", "0"], "--max-new-tokens"),
        (["generate", "--budget", "0.4", "--tokens-per-second", "50"], "set the same dial"),
        (["generate", "--schedule", "dense", "--budget", "0.4"], "--budget"),
        (["generate", "-p", "a", "-f", "b"], "--file"),
        (["generate", "-f", "no-such-file"], "no-such-file"),
        (["generate", "-p", ""], "empty"),
        (["perplexity"], "--file"),
        (["export"], "--model"),
        (["export", "-m", "smollm2-135m", "--bits", "eight"], "--bits"),
        (["export", "-m", "smollm2-135m", "--channel-density", "1,1"], "--channel-density"),
        (["export", "-m", "smollm2-135m", "--kv", "int7"], "--kv int7: expected float16 or int8"),
        (["export", "-m", "smollm2-135m", "--calibration", "no-such-file"], "calibration no-such-file: no such file"),
        (["export", "-m", "smollm2-135m", "--calibration", "none", "--max-actions", "5"], "max actions: got 5"),
        (["export", "-m", "smollm2-135m", "--max-actions", "0"], "--max-actions"),
        (["export", "-m", "smollm2-135m", "--calibration", "full", "--save-calibration", "/"], "/: a folder"),
        (["export", "-m", "smollm2-135m", "--bits", "2"], "bits: got 2, expected different ones of 8, 6, mixed, 4"),
        (["export", "-m", "smollm2-135m", "--bits", "8,5"], "--bits 8,5: mixed bits are written mixed"),
        (["export", "-m", "smollm2-135m", "--kv-density", "1,0.333"], "--kv-density: got 0.333, expected a share"),
        (["export", "-m", "no-such-model"], "no-such-model"),
        (["pull", "no-such-model"], "no-such-model: neither an alias"),
        (["pull", "SmolLM2"], "did you mean 'smollm2-1.7b' or 'smollm2-135m' or 'smollm2-360m'?"),
        (["run", "SmolLM2-135M"], "did you mean 'smollm2-135m'"),
        (["run", "qwen"], "did you mean 'qwen2.5-"),
        (["export", "-m", "nothing-like-it"], "sol-rt pull lists the aliases, a hub id is owner/name"),
        (
            ["run", "Why is the sky blue?"],
            "run: expected a model first: sol-rt run smollm2-135m 'Why is the sky blue?'",
        ),
        (["chat"], "`sol-rt run smollm2-135m` fetches one"),
        (["verify"], "no model"),
        (["profile", "--seconds", "nan"], "--seconds nan: expected a number from 1"),
        (["generate", "-f", "a\0b"], "embedded null"),
        (["run", "~nobody-of-this-name/a"], "got '~nobody-of-this-name', expected a user who has a folder"),
        (["inspect", "-m", "no-such-bundle"], "no-such-bundle"),
        (["inspect", "no-such-bundle"], "no-such-bundle"),
        (["inspect", ""], "got an empty name"),
        (["push", "", "owner/name"], "got an empty name"),
        (["export", ""], "got an empty name"),
        (["run", "", "a question"], "got an empty name"),
        (["generate", "-p", "a", "-m", ""], "got an empty name"),
        (["generate", "--tokens-per-second", "0"], "--tokens-per-second 0: expected a finite number over 0"),
        (["chat", "--governor", "--tokens-per-second", "0"], "--tokens-per-second 0: expected a finite number over 0"),
        (["chat", "one", "-m", "other"], "--model: got two, other and the argument one; give one"),
        (["chat", "one", "two"], "two"),
        (["generate", "a story"], "-p gives the prompt, -m names the model"),
        (["train", "one", "--data", "text"], "-m names the model"),
        (["train", "--data", "text", "--minutes", "nan"], "--minutes nan: expected a finite number from 0.1"),
        (["generate", "-p", "a", "-m", "no-such-bundle"], "no-such-bundle"),
    ],
)
def test_usage_errors_are_one_line(capsys: pytest.CaptureFixture[str], argv: list[str], part: str) -> None:
    fails(capsys, argv, 2, part)


def test_a_home_of_nobody(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOL_RT_HOME", "~nobody-of-this-name/a")
    fails(capsys, ["list"], 2, "SOL_RT_HOME '~nobody-of-this-name/a': got ", "expected a user who has a folder")


LONG = "\x1b]0;pwn\x07" + "x" * 5000


@pytest.mark.parametrize(
    ("argv", "end"),
    [
        (["generate", "--temperature", LONG], "is not a valid float range."),
        (["generate", f"--temperature={LONG}"], "is not a valid float range."),
        (["generate", "--seed", "1" * 5000], "is not a valid int range."),
        (["generate", "--max-loss", LONG], "x…"),
        (["generate", "--logit-bias", LONG], "expected ID=BIAS, for example 50256=-100"),
        (["generate", "-f", LONG], "File name too long"),
        (["inspect", "-o", LONG], "x…"),
        (["run", LONG], "File name too long"),
        (["pull", LONG], ""),
        ([LONG], ""),
    ],
)
def test_an_argument_is_not_repeated_at_length(capsys: pytest.CaptureFixture[str], argv: list[str], end: str) -> None:
    assert main(argv) in {1, 2}
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("sol-rt: error: ")
    assert err[:-1].isprintable()
    assert "x" * 200 not in err
    assert "1" * 200 not in err
    assert end in err


def test_the_environment_is_not_repeated_at_length(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOL_RT_TEMPERATURE", LONG)
    assert main(["generate"]) == 2
    err = capsys.readouterr().err
    assert err[:-1].isprintable()
    assert "x" * 200 not in err
    assert err.endswith("(from $SOL_RT_TEMPERATURE)\n")


@pytest.mark.parametrize("command", ["pull", "export -m", "run"])
def test_a_home_that_is_no_folder_has_a_next_step(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str
) -> None:
    if command != "pull":
        pytest.importorskip("torch", reason="exporting comes with the extra export")
    (tmp_path / "file").touch()
    monkeypatch.setenv("SOL_RT_HOME", str(tmp_path / "file" / "home"))
    fails(capsys, [*command.split(), "smollm2-135m"], 1, "make it writable, or set SOL_RT_HOME to another folder")


def test_an_export_elsewhere_needs_no_home(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, llama_checkpoint: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SOL_RT_HOME", str(tmp_path / "file" / "home"))
    output = tmp_path / "out"
    argv = ["export", "-m", str(llama_checkpoint), "-o", str(output), "--calibration", "none", "--no-parity"]
    assert main([*argv, "--bits", "4", "--ctx-size", "64"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{output}\n"
    assert f"so this is not the default model; use -m {output}" in err.splitlines()[-1]
    config = Bundle.open(output).config
    assert (config.dense.bits, config.model.max_context) == (4, 64)


def test_an_output_that_can_not_be_written_has_a_next_step(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="exporting comes with the extra export")
    (tmp_path / "file").touch()
    argv = ["export", "-m", "smollm2-135m", "-o", str(tmp_path / "file" / "bundle")]
    fails(capsys, argv, 1, "make it writable, or choose another -o")


def test_the_last_value_of_a_repeated_option_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "-n", "4", "-n", "0"]) == 2
    assert capsys.readouterr().err.endswith(": 0 is not in the range x>=1.\n")


@pytest.mark.parametrize("value", ["abc", "-1", "1" + 23 * "0", "2560x", "0x", "089", "2,5"])
def test_a_mask_of_targets_that_is_none_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, llama_bundle: Path, value: str
) -> None:
    monkeypatch.setenv("SOL_RT_SIMD_TARGETS", value)
    argv = ["generate", "-m", str(llama_bundle), "-p", "a"]
    fails(capsys, argv, 2, f"SOL_RT_SIMD_TARGETS: got {value!r}, expected a number from 0 to 2^63 - 1")


@pytest.mark.parametrize("value", ["", "0xA00", "2560", "0"])
def test_a_mask_of_targets(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("SOL_RT_SIMD_TARGETS", value)
    check_simd_targets()


def test_environment_mirrors_flags(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOL_RT_BUDGET", "7")
    fails(capsys, ["generate", "-p", "a"], 2, "--budget", "(from $SOL_RT_BUDGET)")
    fails(capsys, ["generate", "-p", "a", "--budget", "0.5"], 2, "no model")


@pytest.mark.parametrize("flag", ["--kv-density", "--channel-density"])
@pytest.mark.parametrize(
    ("command", "value", "got"), [("generate", "30", "30"), ("perplexity", "-1", "-1"), ("export", "1,50", "50")]
)
def test_a_density_is_a_share(
    capsys: pytest.CaptureFixture[str], command: str, value: str, got: str, flag: str
) -> None:
    given = ["-f", "x"] if command == "perplexity" else ["-m", "smollm2-135m"]
    argv = [command, *given, flag, value]
    fails(capsys, argv, 2, f"{flag} {got}: expected a share from 0 to 1, for example 0.3")


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pull", "no-such-model", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_prompts_that_are_not_utf8(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "latin1.txt").write_bytes("na\xefve".encode("latin-1"))
    fails(capsys, ["generate", "-f", str(tmp_path / "latin1.txt")], 2, "byte 2 is not UTF-8")


def test_a_folder_that_is_no_bundle(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    fails(capsys, ["verify", "-m", str(tmp_path)], 1, "sol_config.json")


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_a_model_is_named_by_an_argument_or_an_option(capsys: pytest.CaptureFixture[str], command: str) -> None:
    tiny = str(TINY)
    shown = []
    for given in ([tiny], ["-m", tiny], [tiny, "-m", tiny]):
        assert main([command, *given]) == 0
        shown.append(capsys.readouterr().out)
    assert "tiny" in shown[0]
    assert len(set(shown)) == 1


def test_the_argument_goes_before_the_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOL_RT_MODEL", "no-such-bundle")
    assert main(["inspect", str(TINY)]) == 0
    assert "tiny" in capsys.readouterr().out


def test_help_lists_first_what_is_done_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    listed = [
        words[1] for line in capsys.readouterr().out.splitlines() if (words := line.split())[1:] and line[2:3] > " "
    ]
    assert [name for name in listed if name in COMMANDS][:5] == ["run", "chat", "generate", "serve", "export"]


def test_the_old_name_of_profile_serves_and_gives_the_new_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "--seconds", "nan"]) == 2
    told, error = capsys.readouterr().err.splitlines()
    assert told == "`sol-rt calibrate` is called `sol-rt profile` now"
    assert error.startswith("sol-rt: error: --seconds nan: expected a number from 1")
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert ("profile" in listed, "calibrate" in listed) == (True, False)


def test_help_wraps_at_the_edge_alone() -> None:
    """Typer keeps the line breaks within every paragraph but the first."""
    commands = typer.main.get_command(make_app(COMMANDS)).commands.values()  # type: ignore[attr-defined]
    assert all(command.help for command in commands)
    assert [command.name for command in commands if "\n" in command.help.replace("\n\n", "")] == []


def test_help_shows_what_is_in_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pull", "--help"]) == 0
    assert "owner/name[@revision]" in capsys.readouterr().out


def test_pull_lists_aliases(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pull"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("smollm2-135m ") for line in lines)
    assert not any("here" in line.split("(")[-1] for line in lines)
    names = [line.split()[0] for line in lines]
    starts = {line.index(line.split()[1], len(name)) for name, line in zip(names, lines, strict=True)}
    assert starts == {max(map(len, names)) + 1}, "one column"


def test_pull_marks_what_is_here(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    (home / "bundles" / "smollm2-135m").mkdir(parents=True)
    (home / "bundles" / "smollm2-135m" / "sol_config.json").write_text("{}")
    assert main(["pull"]) == 0
    marked = [line for line in capsys.readouterr().out.splitlines() if line.endswith(", here)")]
    assert [line.split()[0] for line in marked] == ["smollm2-135m"]


def test_doctor_finds_a_sound_installation(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    findings = {finding["what"]: finding for finding in json.loads(capsys.readouterr().out)["findings"]}
    assert findings["onnxruntime"]["state"] == "ok"
    assert findings["native operators"]["state"] in {"ok", "missing"}
    assert findings["default model"]["state"] == "missing"


def test_doctor_says_where_home_is_not_writable(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    home.write_text("a file where a folder belongs")
    assert main(["doctor"]) == 1
    assert re.search(r"^broken +home", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize("where", ["~nobody-of-this-name/x", "x" * 300])
def test_doctor_says_what_is_wrong_with_home(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setenv("SOL_RT_HOME", where)
    assert main(["doctor"]) == 1
    assert re.search(r"^broken +home", capsys.readouterr().out, re.MULTILINE)


def test_doctor_says_that_onnxruntime_cannot_be_imported(home: Path) -> None:
    """And does not stand on it anywhere else."""
    remember_last_export(write_bundle(home / "bundles" / "tiny"))
    program = (
        "import sys; sys.modules['onnxruntime'] = None; from sol_rt.cli import main; "
        "sys.exit(main(['doctor', '--json']))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr == ""
    findings = {finding["what"]: finding for finding in json.loads(run.stdout)["findings"]}
    assert "pip install --force-reinstall onnxruntime" in findings["onnxruntime"]["detail"]
    for what in ("onnxruntime", "webgpu", "cuda"):
        assert findings[what]["state"] == "broken", what
    for what in ("processor", "memory", "home", "bundles", "default model", "model memory"):
        assert findings[what]["state"] == "ok", what


@pytest.mark.parametrize("folder", ["bundles", "bundles/tiny"])
def test_doctor_names_a_folder_that_cannot_be_read(
    capsys: pytest.CaptureFixture[str], home: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a file mode would make one, which is nothing to root."""
    remember_last_export(write_bundle(home / "bundles" / "tiny"))
    closed, stat, listdir = home / folder, os.stat, os.listdir

    def refused(path: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    def open_stat(path: Any, **rest: Any) -> os.stat_result:
        if isinstance(path, (str, Path)) and closed in Path(path).parents:
            refused(path)
        return stat(path, **rest)

    monkeypatch.setattr(os, "stat", open_stat)
    monkeypatch.setattr(os, "listdir", lambda path: refused(path) if Path(path) == closed else listdir(path))
    assert main(["doctor"]) == 1
    out, err = capsys.readouterr()
    assert err == ""
    for what in ("bundles", "default model"):
        assert re.search(rf"^broken +{what} +{closed}.*: Permission denied; make it readable$", out, re.MULTILINE), out


def test_as_a_module_without_a_terminal() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "sol_rt", "generate", "-p", "a"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr.splitlines()[-1].startswith("sol-rt: error: no model")
    assert "\x1b" not in run.stderr


def test_ctrl_c_while_the_program_starts(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupt:
        """Ctrl-C that comes while the commands are imported."""

        def find_spec(self, name: str, *_: object) -> None:
            if name == "sol_rt.cli.app":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "sol_rt.cli.app", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupt(), *sys.meta_path])
    try:
        code = main(["--version"])
    except KeyboardInterrupt:
        pytest.fail("Ctrl-C came through")
    assert code == 130
    assert capsys.readouterr().err == "sol-rt: stopped by Ctrl-C\n"


@pytest.mark.skipif(sys.platform == "win32", reason="closes a file descriptor of the child")
@pytest.mark.parametrize("closed", [0, 1, 2])
def test_closed_standard_streams(closed: int) -> None:
    script = f"""
import os, sys
os.close({closed})
os.execv(sys.executable, [sys.executable, "-m", "sol_rt", "inspect", "-m", "no-such-bundle"])
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert ("no-such-bundle" in run.stderr) == (closed != 2)
    script = script.replace('"inspect", "-m", "no-such-bundle"', '"pull"')
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert ("smollm2-135m" in run.stdout) == (closed != 1)


def test_export_looks_at_its_target_before_it_fetches(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    target = home / "bundles" / "smollm2-135m"
    target.mkdir(parents=True)
    (target / "sol_config.json").write_text("{}")
    fails(capsys, ["export", "-m", "smollm2-135m"], 2, "--force")
    assert not (home / "checkpoints").exists()
