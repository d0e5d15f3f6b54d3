"""The native core beside the Python engine: tokens a second, memory, and time to the first token.

    python benchmarks speed.native_engine smollm2-135m qwen2.5-coder-1.5b

Each engine has a process of its own, and the two take turns: a round is one generation of each at every setting, after
the same tokens in the cache. Costs are bytes in both, so that both take the same actions.
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from report import BENCHMARKS, FOLDER, machine, quartiles, write_page

SETTINGS: dict[str, dict[str, Any]] = {
    "dense": {"budget": 1.0},
    "4 bits": {"schedule": "fixed:k100-s100-q4"},
    "budget 0.5": {"budget": 0.5},
}
ENGINES = ("python", "native")
CONTEXT = 512
SHORT = 16  # tokens of the prompt for the time to the first token
WITHOUT_END = {"eos_token_id": [], "do_sample": False}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("-n", "--count", type=int, default=64, help="decode steps per generation")
    parser.add_argument("-r", "--rounds", type=int, default=15)
    parser.add_argument("--starts", type=int, default=5, help="processes for the time to the first token")
    parser.add_argument("-t", "--threads", type=int)
    parser.add_argument("-o", "--output", type=Path, default=FOLDER / "native-core.md", help="page to write")
    parser.add_argument("--worker", choices=ENGINES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker, arguments.models[0], arguments.threads)
        return
    sections = [_section(model, arguments) for model in arguments.models]
    write_page(arguments.output, _page(arguments, sections))


def work(engine: str, model: str, threads: int | None) -> None:
    """Opens a model, gives a first token, then answers a line of JSON with settings by one with figures."""
    began = time.perf_counter()
    loaded = _open(engine, model, threads)
    vocabulary = loaded.bundle.config.model.vocab_size
    ids = np.random.default_rng(0).integers(vocabulary // 100, vocabulary, CONTEXT).tolist()
    for _ in loaded.stream(ids[:SHORT], budget=1.0, max_new_tokens=1, **WITHOUT_END):
        pass
    _say({"first_token_s": time.perf_counter() - began})
    for line in sys.stdin:
        asked = json.loads(line)
        if asked == "memory":
            _say(_memory(loaded.bundle.file(loaded.bundle.config.weights_file)))
            continue
        stream = loaded.stream(ids, reuse_cache=True, **asked, **WITHOUT_END)
        next(stream)
        start, steps, actions = time.perf_counter(), 0, []
        for token in stream:
            steps += 1
            actions.append(token.action.tag)
        seconds = time.perf_counter() - start
        _say(
            {
                "rate": steps / seconds,
                "inside": stream.result.tokens_per_second,
                "tokens": stream.result.tokens,
                "actions": actions,
            }
        )


def _open(engine: str, model: str, threads: int | None) -> Any:
    if engine == "python":
        from sol_rt.generate.model import SolModel

        return SolModel.from_pretrained(model, provider="cpu", threads=threads, measure_costs=False)
    from sol_rt.generate.native.model import NativeModel

    return NativeModel.from_pretrained(model, threads=threads, measure_costs=False)


def _say(value: Any) -> None:
    print(json.dumps(value), flush=True)


def _memory(weights: Path) -> dict[str, float]:
    """MB of this process: private and written to, private and clean, and resident pages of the weights."""
    found = dict.fromkeys(("Private_Dirty", "Private_Clean", "Rss", "weights"), 0.0)
    in_weights = False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace").splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            in_weights = line.endswith(str(weights.resolve()))
            continue
        name, _, rest = line.partition(":")
        if name in found:
            size = int(rest.split()[0]) * 1024 / 1e6
            found[name] += size
            if name == "Rss" and in_weights:
                found["weights"] += size
    return found


class Worker:
    """A process with one engine.

    Attributes:
        started: seconds from the start of the process to its first token, and from the opening of the bundle.
    """

    def __init__(self, engine: str, model: str, threads: int | None) -> None:
        command = [sys.executable, str(BENCHMARKS), "speed.native_engine", model, "--worker", engine]
        command += ["-t", str(threads)] if threads else []
        began = time.perf_counter()
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        opened = self._read()["first_token_s"]
        self.started = time.perf_counter() - began, opened

    def ask(self, what: Any) -> Any:
        """Sends a request and returns the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        return self._read()

    def end(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the worker ended with {self._process.wait()}")
        return json.loads(line)


def _section(model: str, arguments: argparse.Namespace) -> dict[str, Any]:
    starts: dict[str, list[tuple[float, float]]] = {engine: [] for engine in ENGINES}
    for _ in range(arguments.starts):
        for engine in ENGINES:
            worker = Worker(engine, model, arguments.threads)
            starts[engine].append(worker.started)
            worker.end()
    workers = {engine: Worker(engine, model, arguments.threads) for engine in ENGINES}
    found: dict[str, dict[str, list[Any]]] = {name: {engine: [] for engine in ENGINES} for name in SETTINGS}
    for number in range(arguments.rounds + 1):  # the first round warms up
        for name in random.sample(list(SETTINGS), len(SETTINGS)):
            for engine in random.sample(ENGINES, 2):
                answer = workers[engine].ask({**SETTINGS[name], "max_new_tokens": arguments.count + 1})
                if number:
                    found[name][engine].append(answer)
    memory = {engine: worker.ask("memory") for engine, worker in workers.items()}
    for worker in workers.values():
        worker.end()
    print(
        model,
        {name: {e: statistics.median(a["rate"] for a in r[e]) for e in r} for name, r in found.items()},
        file=sys.stderr,
    )
    return {"model": model, "starts": starts, "speed": found, "memory": memory}


def _page(arguments: argparse.Namespace, sections: list[dict[str, Any]]) -> str:
    import onnxruntime

    commit = subprocess.run(
        ["git", "rev-parse", "--short=7", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    lines = [
        "# The native core beside the Python engine",
        "",
        f"{datetime.date.today():%-d %B %Y}, commit `{commit}`, {machine()}, onnxruntime {onnxruntime.__version__}.",
        "",
        f"Speed: {arguments.rounds} rounds of {arguments.count} decode steps after {CONTEXT} tokens, greedy, medians "
        "[quartiles]. Each engine has a process of its own;",
        "the two take turns, settings and engines in random order in every round, after a round of warm-up. A ratio "
        "compares two generations of the",
        "same round. The caller is Python in both: the time that it takes to read a token counts. Costs are bytes.",
        "",
        "Memory: `/proc/self/smaps` after those rounds. Private: written to by this process alone (KV cache, buffers, "
        "heap, the interpreter). Weights:",
        "pages of the mapped file that are in memory; other processes share them, and the system may drop them.",
        "",
        f"First token: prompt of {SHORT} tokens, files in the page cache, {arguments.starts} new processes of each "
        "engine in turn. From start: of the process, the",
        "interpreter and its imports included.",
        "",
        f"Command: `python benchmarks speed.native_engine {' '.join(arguments.models)}`",
    ]
    for section in sections:
        lines += ["", f"## {Path(section['model']).name}", "", *_speed(section["speed"]), "", *_rest(section)]
    return "\n".join([*lines, ""])


def _speed(found: dict[str, dict[str, list[Any]]]) -> list[str]:
    lines = [
        "| setting | Python, tokens/s | core, tokens/s | core / Python | same tokens and actions |",
        "|---|--:|--:|--:|---|",
    ]
    for name, answers in found.items():
        rates = {engine: [answer["rate"] for answer in answers[engine]] for engine in ENGINES}
        ratio = [native / python for python, native in zip(*rates.values(), strict=True)]
        same = all(
            (one["tokens"], one["actions"]) == (other["tokens"], other["actions"])
            for one, other in zip(*answers.values(), strict=True)
        )
        lines.append(
            f"| {name} | {quartiles(rates['python'], 1)} | {quartiles(rates['native'], 1)} | {quartiles(ratio, 3)} | "
            f"{'yes' if same else 'no'} |"
        )
    return lines


def _rest(section: dict[str, Any]) -> list[str]:
    lines = [
        "| engine | private, MB | weights in memory, MB | from start to first token, s | from opening the bundle, s |",
        "|---|--:|--:|--:|--:|",
    ]
    for engine, name in zip(ENGINES, ("Python", "core"), strict=True):
        memory, starts = section["memory"][engine], section["starts"][engine]
        lines.append(
            f"| {name} | {memory['Private_Dirty']:.0f} | {memory['weights']:.0f} | "
            f"{quartiles([start for start, _ in starts])} | {quartiles([opened for _, opened in starts])} |"
        )
    return lines


if __name__ == "__main__":
    main()
