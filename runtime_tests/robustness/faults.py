"""Kills commands at random moments, or fills their disk at every change, and checks what is left.

    python runtime_tests/robustness/faults.py --kill 200
    python runtime_tests/robustness/faults.py --full-disk
    python runtime_tests/robustness/faults.py --changed-weights 40

After a kill or on a full disk, what was there before is still there, whole, or the new one is; what was said to be
saved is saved. The same command then works, and leaves the files of an undisturbed run and no others. Every second time
there is an older result that the command replaces.

A process whose weights are changed while it generates goes on with its own text, or ends with one line.

Commands run in forks of a process that has imported everything, so a trial takes little more than the command itself.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # threads of a library would not survive the forks
if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import torch._dynamo  # noqa: F401 - imported before the forks; AdamW imports it

from helpers.random_checkpoint import PRESETS, write_random_checkpoint
from helpers.random_decoder import WEIGHTS
from helpers.tiny_bundle import write_bundle
from helpers.tools import preloaded
from helpers.train_fixtures import CONFIG, make_bundle, make_text
from sol_rt import SolModel
from sol_rt.cli import main as sol_rt_main
from sol_rt.cli.app import run as _run  # noqa: F401 - imported before the forks
from sol_rt.cli.run.saved_chat import read as read_chat
from sol_rt.errors import SolError
from sol_rt.generate.results import Generation
from sol_rt.native.library import core
from sol_rt.ops import core_path
from sol_rt.store.download import UNFINISHED
from sol_rt.train import trainer as _trainer  # noqa: F401 - imported before the forks

_HUB = """
import sys
from pathlib import Path
from helpers.hub_server import running_hub
with running_hub() as hub:
    hub.repository("someone/tiny", {path.name: path.read_bytes() for path in Path(sys.argv[1]).iterdir()})
    print(hub.url, flush=True)
    sys.stdin.read()
"""


@dataclass
class Place:
    """A folder with what commands read (`given`), what they write (`work`) and their home.

    Attributes:
        expected: what the core says after the tokens of a saved session; empty until it has been asked.
    """

    root: Path
    given: Path = field(init=False)
    work: Path = field(init=False)
    home: Path = field(init=False)
    expected: str = ""

    def __post_init__(self) -> None:
        self.given, self.work, self.home = self.root / "given", self.root / "disk" / "work", self.root / "disk" / "home"
        self.given.mkdir(parents=True)

    def clear(self) -> None:
        """Empties what commands write."""
        shutil.rmtree(self.work.parent, ignore_errors=True)
        self.work.mkdir(parents=True)
        self.home.mkdir()

    def names(self) -> set[str]:
        """Every file and folder that commands have written."""
        return {path.relative_to(self.work.parent).as_posix() for path in self.work.parent.rglob("*")}


@dataclass(frozen=True)
class Command:
    """A command to disturb.

    Attributes:
        argv: its arguments, made for a place.
        again: the arguments of the next run; by default the same.
        whole: says what is wrong with the place after a disturbed run, with stdout and stderr so far, and with whether
            an older result was there before; empty if nothing.
        done: says what is wrong with the place after an undisturbed run; empty if nothing.
        older: changes what an undisturbed run left into another result; by default it stays as it is.
        typed: what it reads from stdin.
        run: runs the arguments and returns an exit code; by default `sol-rt` does.
        unnamed: a pattern of names that differ from run to run.
    """

    argv: Callable[[Place], list[str]]
    whole: Callable[[Place, str, str, bool], str]
    done: Callable[[Place], str]
    again: Callable[[Place], list[str]] | None = None
    older: Callable[[Place], None] | None = None
    typed: str = ""
    unnamed: str = r"$^"
    run: Callable[[list[str]], int] = sol_rt_main


@dataclass
class Outcome:
    """Output of a trial's process: exit code (None: killed), stdout and stderr."""

    code: int | None
    out: str
    err: str


def forked(place: Place, body: Callable[[], int], typed: str, environment: dict[str, str]) -> tuple[int, Path]:
    """Runs `body` in a fork, which ends with the code that it returns. Returns its process id and the folder of its
    output.
    """
    streams = Path(tempfile.mkdtemp(dir=place.root))
    (streams / "in").write_text(typed, encoding="utf-8")
    process = os.fork()
    if process:
        return process, streams
    code = 99
    try:
        os.setsid()
        for number, name, flags in ((0, "in", os.O_RDONLY), (1, "out", os.O_CREAT | os.O_WRONLY), (2, "err", os.O_CREAT | os.O_WRONLY)):  # fmt: skip  # noqa: E501
            os.dup2(os.open(streams / name, flags), number)
        os.environ.update(environment)
        os.chdir(place.work)
        code = body()
        sys.stdout.flush()
        sys.stderr.flush()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 98
    finally:
        os._exit(code)


def finish(process: int, streams: Path, kill_after: float | None = None) -> Outcome:
    """Waits for the end of a process, or kills it after some seconds."""
    if kill_after is not None:
        end = time.monotonic() + kill_after
        while time.monotonic() < end:
            found, status = os.waitpid(process, os.WNOHANG)
            if found:
                break
            time.sleep(0.0005)
        else:
            os.killpg(process, signal.SIGKILL) if os.getpgid(process) == process else os.kill(process, signal.SIGKILL)
            _, status = os.waitpid(process, 0)
    else:
        _, status = os.waitpid(process, 0)
    code = os.waitstatus_to_exitcode(status)
    texts = [(streams / name).read_text(encoding="utf-8", errors="replace") if (streams / name).exists() else "" for name in ("out", "err")]  # fmt: skip  # noqa: E501
    shutil.rmtree(streams)
    return Outcome(None if code == -signal.SIGKILL else code, *texts)


def call(
    place: Place, argv: list[str], typed: str = "", run: Callable[[list[str]], int] = sol_rt_main, **environment: str
) -> Outcome:
    """Runs `sol-rt`, or another program, with `argv` in a fork to its end."""
    return finish(*forked(place, lambda: run(argv), typed, {"SOL_RT_HOME": str(place.home), **environment}))


def is_bundle(place: Place, folder: Path, before: bool) -> str:
    """Empty if the folder is a whole bundle, or is not there and was not there before."""
    if not folder.exists():
        return _needs(not before, f"the older {folder.name} is gone")
    checked = call(place, ["verify", "-m", str(folder)])
    return "" if checked.code == 0 else f"{folder.name} is damaged: {checked.err.strip()[-200:]}"


def _bundle(name: str, home: bool = False) -> Callable[[Place], Path]:
    return lambda place: (place.home / "bundles" if home else place.work) / name


def _needs(condition: object, problem: str) -> str:
    return "" if condition else problem


# Promises of each command


def _whole_table(place: Place, out: str, err: str, before: bool) -> str:
    tables = list((place.home / "costs").glob("*.json"))
    if before and not tables:
        return "the older table is gone"
    for path in tables:
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            return f"{path.name} is half a table"
    return ""


def _whole_chat(place: Place, out: str, err: str, before: bool) -> str:
    said = re.findall(r"saved, (\d+) messages", err)
    path = place.work / "chat.json"
    if not path.exists():
        problem = f"said {len(said)} times that it saved, but there is no file"
        return _needs(not before, "the older chat is gone") or _needs(not said, problem)
    try:
        saved = len(read_chat(str(path)).messages)
    except Exception as error:
        return f"the saved chat is damaged: {error}"
    return _needs(saved >= max(map(int, said), default=0), f"said {said[-1:]} messages, {saved} are there")


def _whole_trace(place: Place, out: str, err: str, before: bool) -> str:
    path = place.work / "trace.jsonl"  # it is begun anew at once, so an older one is not kept
    if before and not path.exists():
        return "no trace, neither the older one nor a new one"
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    try:
        records = [json.loads(line) for line in lines]
    except ValueError:
        return "a whole line of the trace is damaged"
    text = "".join(record["text"] for record in records[1:])
    return _needs(text.startswith(out.rstrip("\n")), f"printed {out[-40:]!r}, the trace has {text[-40:]!r}")


def _whole_training(place: Place, out: str, err: str, before: bool) -> str:
    from safetensors.numpy import load_file

    for name in ("policy.safetensors", "checkpoint.pt"):
        if before and not (place.work / "policy" / name).exists():
            return f"the older {name} is gone"
    for path in (place.work / "policy").rglob("*.safetensors"):
        try:
            load_file(path)
        except Exception as error:
            return f"{path.name} is damaged: {error}"
    return ""


# The core's sessions, which no command of `sol-rt` saves

_PROMPT, _SAVES = [1, 2, 3], 12


def _core_session(bundle: str) -> tuple[Any, SolModel]:
    """The core, with the types of what saves and restores a session; and a model in it."""
    library = core()
    for name in ("sol_session_save", "sol_session_restore"):
        function = getattr(library, name)
        function.restype, function.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_char_p)
        function.errcheck = library.sol_session_start.errcheck
    return library, SolModel.from_pretrained(bundle, provider="cpu", threads=1, measure_costs=False)


def _continued(model: SolModel, tokens: list[int], count: int) -> Generation:
    settings = {"schedule": "dense", "max_new_tokens": count, "eos_token_id": (), "do_sample": True, "seed": 7}
    stream = model.stream(tokens, reuse_cache=True, **settings)
    for _ in stream:
        pass
    assert stream.result is not None
    return stream.result


def _conversation(model: SolModel) -> Iterator[list[int]]:
    """The tokens of a prompt and what follows it, longer each time."""
    tokens = list(_PROMPT)
    for _ in range(_SAVES):
        tokens += _continued(model, tokens, 8).tokens
        yield tokens


def save_sessions(argv: list[str]) -> int:
    """Generates in the core, and saves the session again and again to one file. `argv`: bundle and file.

    Says after each time how many tokens the file has.
    """
    try:
        library, model = _core_session(argv[0])
        for tokens in _conversation(model):
            library.sol_session_save(model.engine.handle, argv[1].encode())
            print(f"saved, {len(tokens) - 1} tokens", file=sys.stderr, flush=True)  # the last one has not run yet
    except SolError as error:
        print(f"sol-rt: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def restore_session(argv: list[str]) -> int:
    """Prints how many tokens a saved session has of those that `save_sessions` generates, and what comes after them.

    `argv`: the bundle, and the file; without it, no session is restored.
    """
    library, model = _core_session(argv[0])
    *_, tokens = _conversation(model)
    if len(argv) > 1:
        library.sol_session_restore(model.engine.handle, argv[1].encode())
    result = _continued(model, tokens, 8)
    print(result.cached_tokens, *result.tokens)
    return 0


def _whole_session(place: Place, out: str, err: str, before: bool) -> str:
    said = [int(count) for count in re.findall(r"saved, (\d+) tokens", err)]
    if not (place.work / "chat.session").exists():
        problem = f"said {len(said)} times that it saved, but there is no file"
        return _needs(not before, "the older session is gone") or _needs(not said, problem)
    bundle = str(place.given / "tiny")
    if not place.expected:
        place.expected = call(place, [bundle], run=restore_session).out.split(maxsplit=1)[1]
    restored = call(place, [bundle, "chat.session"], run=restore_session)
    if restored.code != 0:
        return f"the saved session is damaged: {restored.err.strip()[-300:]}"
    count, after = restored.out.split(maxsplit=1)
    problem = f"after the saved session comes {after!r}, expected {place.expected!r}"
    return _needs(after == place.expected, problem) or _needs(
        int(count) >= max(said, default=1), f"said {said[-1:]} tokens, {count} are there"
    )


def commands(place: Place, hub: str) -> dict[str, Command]:
    """Every command that writes, by name."""
    tiny, other, source, train = (place.given / name for name in ("tiny", "other", "source", "train"))
    os.environ["HF_ENDPOINT"] = hub
    generate = ["generate", "-m", str(tiny), "-p", "w1 w2 w3", "-n", "100", "--budget", "0.7", "--schedule", "uniform"]
    output = _bundle("out")
    pulled = _bundle("tiny", home=True)
    training = ["train", "-m", str(train / "tiny"), "--data", str(train / "text.txt"), "-t", "1"]
    training += ["--config", str(train / "config.yaml"), "-o", str(place.work / "policy")]
    return {
        "export": Command(
            lambda p: ["export", "-m", str(source), "-o", "out", "--force", "--no-parity", "--calibration", "none"],
            lambda p, out, err, before: is_bundle(p, output(p), before),
            lambda p: is_bundle(p, output(p), before=True),
        ),
        "pull": Command(
            lambda p: ["pull", "someone/tiny", "--force"],
            lambda p, out, err, before: is_bundle(p, pulled(p), before),
            lambda p: is_bundle(p, pulled(p), before=True),
            older=lambda p: _copy(other, pulled(p)),  # the same bundle would be kept
        ),
        "profile": Command(
            lambda p: ["profile", "-m", str(tiny), "-t", "1"],
            _whole_table,
            lambda p: _whole_table(p, "", "", before=True),
        ),
        "train": Command(
            lambda p: training,
            _whole_training,
            lambda p: _whole_training(p, "", "", before=True),
            again=lambda p: [*training, "--resume"] if (p.work / "policy" / "checkpoint.pt").exists() else training,
            unnamed="tfevents",
        ),
        "chat": Command(
            lambda p: ["chat", "-m", str(tiny), "-n", "8", "-t", "1"],
            _whole_chat,
            lambda p: _whole_chat(p, "", "saved, 40 messages", before=True),
            typed="w1 w2\n/save chat.json\n" * 20,
        ),
        "session": Command(
            lambda p: [str(tiny), "chat.session"],
            _whole_session,
            lambda p: _whole_session(p, "", f"saved, {len(_PROMPT) + 8 * _SAVES - 1} tokens", before=True),
            run=save_sessions,
        ),
        "trace": Command(
            lambda p: [*generate, "--trace", "trace.jsonl", "-t", "1"],
            _whole_trace,
            lambda p: _needs(
                len((p.work / "trace.jsonl").read_text(encoding="utf-8").splitlines()) > 50, "a short trace"
            ),
        ),
    }


@contextmanager
def prepared(folder: Path) -> Iterator[tuple[Place, str]]:
    """A place with everything that the commands read, and a hub's address."""
    place = Place(folder)
    write_bundle(place.given / "tiny")
    write_bundle(place.given / "other", seed=1)
    (place.given / "train").mkdir()
    make_bundle(place.given / "train" / "tiny")
    make_text(place.given / "train" / "text.txt")
    (place.given / "train" / "config.yaml").write_text(CONFIG, encoding="utf-8")
    write_random_checkpoint(place.given / "source", PRESETS["tiny-llama"])
    served = place.root / "served"
    shutil.copytree(place.given / "tiny", served)
    (served / "README.md").write_text("---\nlicense: other\n---\n", encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen([sys.executable, "-c", _HUB, str(served)], stdin=-1, stdout=-1, text=True, env=environment) as hub:  # fmt: skip  # noqa: E501
        assert hub.stdout is not None
        assert hub.stdin is not None
        try:
            yield place, hub.stdout.readline().strip()
        finally:
            hub.stdin.close()


def undisturbed(place: Place, command: Command) -> tuple[set[str], float]:
    """Runs the command to its end in an empty place. Returns the names that it leaves, and its seconds."""
    place.clear()
    began = time.monotonic()
    outcome = call(place, command.argv(place), command.typed, command.run)
    seconds = time.monotonic() - began
    problem = command.done(place) if outcome.code == 0 else outcome.err.strip()[-500:]
    if problem:
        raise SystemExit(f"the undisturbed run failed: {problem}")
    return _stable(place.names(), command), seconds


def _copy(source: Path, target: Path) -> None:
    shutil.rmtree(target)
    shutil.copytree(source, target)


def _begin(place: Place, command: Command, older: bool) -> list[str]:
    """Empties the place and puts an older result there if wanted. Returns the arguments of the run to disturb."""
    place.clear()
    if not older:
        return command.argv(place)
    outcome = call(place, command.argv(place), command.typed, command.run)
    if outcome.code != 0:
        raise SystemExit(f"the run before failed: {outcome.err.strip()[-500:]}")
    if command.older is not None:
        command.older(place)
    return (command.again or command.argv)(place)


def _stable(names: set[str], command: Command) -> set[str]:
    return {name for name in names if not re.search(command.unnamed, name)}


def _goes_on(place: Place, command: Command, names: set[str]) -> str:
    """Describes a fault of the next run; empty if there is none."""
    outcome = call(place, (command.again or command.argv)(place), command.typed, command.run)
    if outcome.code != 0:
        return f"the next run ends with {outcome.code}: {outcome.err.strip()[-300:]}"
    if problem := command.done(place):
        return f"after the next run: {problem}"
    left = _stable(place.names(), command)
    if left != names:
        return f"after the next run there is {sorted(left - names)}, and no {sorted(names - left)}"
    return ""


def kill(place: Place, command: Command, trials: int, seed: int) -> dict[str, Any]:
    """Kills the command at random moments; every other time there is an older result that it replaces."""
    names, seconds = undisturbed(place, command)
    draw, killed, failures = random.Random(seed), 0, []
    for trial in range(trials):
        older = trial % 2 == 1
        argv = _begin(place, command, older)
        home = {"SOL_RT_HOME": str(place.home)}
        started = forked(place, lambda: command.run(argv), command.typed, home)  # noqa: B023  called here
        moment = draw.uniform(0, 1.1 * seconds)
        outcome = finish(*started, kill_after=moment)
        killed += outcome.code is None
        problem = command.whole(place, outcome.out, outcome.err, older) or _goes_on(place, command, names)
        if problem:
            failures.append(f"trial {trial}, {moment:.3f} of {seconds:.3f} s: {problem}")
    return {"trials": trials, "killed": killed, "seconds": round(seconds, 2), "failures": failures}


def fill_disk(place: Place, command: Command, most: int) -> dict[str, Any]:
    """Lets every change of the disk in turn, or `most` of them, be the first that fails.

    Every other time there is an older result that the command replaces.
    """
    names, _ = undisturbed(place, command)

    def limited(changes: int, older: bool = False) -> tuple[Outcome, bool]:
        argv = _begin(place, command, older)
        limits = {"FULL_DISK_FOLDER": str(place.work.parent.resolve()), "FULL_DISK_AFTER": str(changes)}
        outcome = call(place, argv, command.typed, command.run, **limits)
        return outcome, outcome.code == 0 and _stable(place.names(), command) == names and not command.done(place)

    enough = 1
    while not limited(enough)[1]:
        enough *= 2
    least = enough // 2
    while enough - least > 1:
        middle = (least + enough) // 2
        least, enough = (least, middle) if limited(middle)[1] else (middle, enough)
    failures, refused = [], 0
    tried = spread(enough, most)
    for trial, changes in enumerate(tried):
        older = trial % 2 == 1
        outcome, _ = limited(changes, older)
        refused += outcome.code != 0
        problem = command.whole(place, outcome.out, outcome.err, older)
        left = {name for name in _stable(place.names(), command) - names if UNFINISHED not in name}
        errors = [line for line in outcome.err.splitlines() if line.startswith("sol-rt: error: ")]
        if not problem and left:
            problem = f"left {sorted(left)}"
        if not problem and outcome.code not in {0, 1, 2}:
            problem = f"exit code {outcome.code}: {outcome.err.strip()[-300:]}"
        if not problem and outcome.code and not (errors and all(map(_names_the_disk, errors))):
            problem = f"said {errors or outcome.err.strip()[-300:]!r}"
        problem = problem or _goes_on(place, command, names)
        if problem:
            failures.append(f"full after {changes} changes: {problem}")
    return {"changes": enough, "tried": len(tried), "refused": refused, "failures": failures}


def spread(count: int, most: int) -> list[int]:
    """The numbers below `count`; `most` of them, evenly spread from the first to the last, if they are more."""
    chosen = min(count, most)
    return sorted({round(index * (count - 1) / max(chosen - 1, 1)) for index in range(chosen)})


def _names_the_disk(line: str) -> bool:
    """True if an error says that the disk is full, and where."""
    return bool(re.search(r"(No space|no room) left", line) and re.search(r"[\w/]+\.\w+|/\w+/| in \.", line))


# Weights that change under a running process


def generate_on(bundle: Path, times: int) -> int:
    """Generates the same tokens again and again, a line each time. Returns an exit code."""
    try:
        model = SolModel.from_pretrained(bundle, threads=1, measure_costs=False)
        for _ in range(times):
            settings = {"schedule": "uniform", "budget": 0.7, "max_new_tokens": 60, "eos_token_id": ()}
            for generated in model.stream([1, 2, 3], **settings):
                print(generated.token, end=" ", flush=True)
            print(flush=True)
    except SolError as error:
        print(f"sol-rt: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def change_weights(place: Place, trials: int, seed: int) -> dict[str, Any]:
    """Gives a process that generates in a loop the weights of another bundle: by renaming, and in place."""
    draw, environment = random.Random(seed), {"SOL_RT_HOME": str(place.home)}
    bundle, other = place.work / "bundle", (place.given / "other" / WEIGHTS).read_bytes()
    texts = []
    for folder in (place.given / "tiny", place.given / "other"):
        place.clear()
        texts.append(finish(*forked(place, lambda: generate_on(folder, 1), "", environment)).out)  # noqa: B023
    if "\n" not in texts[0] or texts[0] == texts[1]:
        raise SystemExit(f"the undisturbed runs failed: {texts}")
    results = {}
    for in_place in (False, True):
        went_on = refused = 0
        failures = []
        for trial in range(trials):
            place.clear()
            shutil.copytree(place.given / "tiny", bundle)
            process, streams = forked(place, lambda: generate_on(bundle, 10**6), "", environment)
            _wait_for_lines(streams / "out", 2)
            time.sleep(draw.uniform(0, 0.05))
            if in_place:
                with (bundle / WEIGHTS).open("r+b") as file:
                    file.write(other)
            else:
                (bundle / "aside").write_bytes(other)
                (bundle / "aside").replace(bundle / WEIGHTS)
            before = (streams / "out").stat().st_size
            if not in_place:
                _wait_for_more(streams, before)
            outcome = finish(process, streams, kill_after=20 if in_place else 0.2)
            *lines, rest = outcome.out.splitlines(keepends=True)
            went_on += outcome.code is None and len(outcome.out) > before
            refused += outcome.code == 1
            if wrong := [line for line in lines if line != texts[0]] or [rest] * (not texts[0].startswith(rest)):
                failures.append(f"trial {trial}: other text: {wrong[0]!r}, expected {texts[0]!r}")
            elif outcome.code is None and (in_place or len(outcome.out) <= before):
                failures.append(f"trial {trial}: {'goes on' if in_place else 'hangs'}")
            elif outcome.code is not None and (outcome.code != 1 or outcome.err.count("\n") != 1):
                failures.append(f"trial {trial}: ended with {outcome.code}: {outcome.err.strip()[-300:]}")
        counts = {"trials": trials, "went on": went_on, "refused": refused, "failures": failures}
        results["in place" if in_place else "by renaming"] = counts
    return results


def _wait_for_lines(path: Path, count: int) -> None:
    end = time.monotonic() + 60
    while not path.exists() or path.read_text(encoding="utf-8").count("\n") < count:
        if time.monotonic() > end:
            raise SystemExit("the process generates nothing")
        time.sleep(0.001)


def _wait_for_more(streams: Path, before: int) -> None:
    """Until a process has written more than `before` bytes of text, or an error; at most a minute."""
    end = time.monotonic() + 60
    while (streams / "out").stat().st_size <= before and not (streams / "err").stat().st_size:
        if time.monotonic() > end:
            return
        time.sleep(0.001)


def runnable(names: Iterable[str]) -> Iterator[str]:
    """The commands that can run here. Says of each other one why it is skipped."""
    for name in names:
        if name == "session" and core_path() is None:
            print(f"{name} skipped: the native core is not built", flush=True)
        else:
            yield name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kill", type=int, default=0, metavar="COUNT", help="kill each command so many times")
    parser.add_argument("--full-disk", type=int, nargs="?", const=10**6, default=0, metavar="COUNT")
    parser.add_argument("--changed-weights", type=int, default=0, metavar="COUNT", help="change weights so many times")
    parser.add_argument("--commands", default="", help="names, separated by commas; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, help="JSON file for the result")
    given = parser.parse_args()
    if given.full_disk and "FULL_DISK_PRELOADED" not in os.environ:
        environment = {**os.environ, "LD_PRELOAD": str(preloaded("full_disk")), "FULL_DISK_PRELOADED": "1"}
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, prepared(Path(folder)) as (place, hub):
        found = commands(place, hub)
        if given.changed_weights:
            results["changed weights"] = change_weights(place, given.changed_weights, given.seed)
            print("changed weights", json.dumps(results["changed weights"]), flush=True)
        disturbed = given.kill or given.full_disk
        for name in runnable(given.commands.split(",") if given.commands else found) if disturbed else ():
            results[name] = {}
            if given.kill:
                results[name]["kill"] = kill(place, found[name], given.kill, given.seed)
            if given.full_disk:
                results[name]["full disk"] = fill_disk(place, found[name], given.full_disk)
            print(name, json.dumps(results[name]), flush=True)
    if given.output is not None:
        given.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if any(kind["failures"] for each in results.values() for kind in each.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
