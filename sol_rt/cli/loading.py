"""Opens the model that a command line names, and checks the options of the dial."""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from sol_rt.cli.console import note, progress
from sol_rt.errors import SolError, UsageError
from sol_rt.read_file import TooLargeError, read_all, read_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from sol_rt.bundle.bundle import Bundle
    from sol_rt.engine.providers import Provider
    from sol_rt.generate.model import SolModel
    from sol_rt.generate.results import GeneratedToken
    from sol_rt.generate.stream import Stream

CHECK_SECONDS = 1.0
"""Hashing weights for longer shows its progress."""
PROMPT_SECONDS = 2.0
"""A prompt that takes longer shows its progress."""
MOST_TEXT = 256 << 20
"""Bytes of a text that are read at most."""
_ANOTHER = "give another file of text, or a part of it"


def require_packages(extra: str, packages: Sequence[str] = (), what: str = "") -> None:
    """Raises SolError if a package of an extra is not installed.

    Args:
        extra: `export`, `train` or `plot`.
        packages: those that are needed; by default all of the extra.
        what: the command or option that needs them; by default the command with the extra's name.
    """
    from sol_rt.evaluation.doctor import EXTRAS, not_installed

    if missing := not_installed(packages or EXTRAS[extra]):
        raise SolError(f"{what or extra} needs {', '.join(missing)}; run pip install 'sol-rt[{extra}]'")


def bundle_path(model: str | None) -> Path:
    """The bundle folder that `-m` names. A note on stderr names the bundle if the user named none."""
    from sol_rt.store.home import find_bundle

    path = find_bundle(model)
    if model is None and not os.environ.get("SOL_RT_MODEL"):
        note(f"model: {path} (exported or pulled last)")
    return path


def load(
    model: str | None,
    *,
    provider: str = "auto",
    threads: int | None = None,
    native_ops: bool = True,
    device: int = 0,
    ctx_size: int | None = None,
    prefill: str | None = None,
    measure_costs: bool = True,
    verify: bool = True,
) -> SolModel:
    """Opens the bundle that `-m` names, and shows progress while its weights are hashed for the first time.

    The other arguments are those of `SolModel.from_pretrained`.

    Warnings of the model are printed on stderr as one line from here on.
    """
    import warnings

    from sol_rt.budget.dominated import describe
    from sol_rt.generate.model import SolModel

    threads = usable_threads(threads)
    bundle = _open(model, ctx_size, verify)

    loaded = SolModel.from_pretrained(
        bundle,
        provider=provider,
        threads=threads,
        native_ops=native_ops,
        device=device,
        max_context=ctx_size,
        prefill=prefill,
        measure_costs=measure_costs,
    )
    warnings.showwarning = lambda message, *where: note(f"warning: {message}")
    name_device(loaded.provider)
    if native_ops and loaded.provider.gpu is None and not loaded.native:
        note("native operators: not installed; standard ones run, several times slower; next step: sol-rt doctor")
    if loaded.cost.note:
        note(loaded.cost.note)
    if loaded.dominated:
        note(describe(loaded.dominated, provider=loaded.provider.name))
    return loaded


def _open(model: str | None, ctx_size: int | None, verify: bool) -> Bundle:
    bundle = open_checked(bundle_path(model), verify=verify)
    if ctx_size is not None and ctx_size > (most := bundle.config.model.max_context):
        raise UsageError(f"--ctx-size {ctx_size}: the model's context is {most} tokens; give at most that")
    return bundle


def usable_threads(threads: int | None) -> int | None:
    """The threads of `--threads`, but no more than processors, which is noted on stderr: they would only wait."""
    from sol_rt.engine.hardware import allowed_cores

    most = len(allowed_cores())
    if threads is None or threads <= most:
        return threads
    note(f"--threads {threads}: this process may use {most} processors, so it runs {most} threads")
    return most


def open_checked(path: Path, *, verify: bool) -> Bundle:
    """Opens a bundle and hashes its weights if that was not done before, with progress. Raises BundleError."""
    from sol_rt.bundle.bundle import Bundle
    from sol_rt.store.verified import check_weights

    bundle = Bundle.open(path, verify=verify)
    with progress(after=CHECK_SECONDS) as report:
        bundle, line = check_weights(bundle, report)
    if line:
        note(line)
    return bundle


class PromptBar:
    """Shows on stderr how much of a prompt was read, if that takes over 2 seconds. `stream` takes it as `progress`."""

    _show: Callable[[int, int], None]  # there as soon as `answered` runs the prompt

    def __call__(self, done: int, total: int) -> None:
        self._show(done, total)

    def answered(self, run: Stream) -> Iterator[GeneratedToken]:
        """The tokens of `run`."""
        with progress(after=PROMPT_SECONDS) as report:
            self._show = partial(report, f"reading the prompt, {run.prompt_tokens} tokens")
            self._show(0, 1)
            first = next(run, None)
        if first is not None:
            yield first
            yield from run


def note_ineffective(loaded: SolModel, how: Mapping[str, Any]) -> None:
    """Notes on stderr which of the settings that `dial` returned do not pay on this device."""
    if line := loaded.ineffective(how["schedule"], how["kv_density"], how["channel_density"], how["bits"]):
        note(line)


def name_device(provider: Provider) -> None:
    """Notes on stderr which GPU computes. Prints nothing on the CPU."""
    if provider.name != "cpu":
        note(f"device: {provider.device_name} ({provider.name})")


def dial(
    schedule: str | None,
    budget: float | None,
    tokens_per_second: float | None,
    kv_density: float | None,
    channel_density: float | None,
    bits: float | None,
    max_loss: float | None = None,
) -> dict[str, Any]:
    """Turns the options of the dial into arguments of `SolModel`. Raises UsageError for options that contradict."""
    from sol_rt.budget.schedules import is_constant

    dials = {"budget": budget, "tokens_per_second": tokens_per_second, "max_loss": max_loss}
    if len(names := [name.replace("_", "-") for name, value in dials.items() if value is not None]) > 1:
        raise UsageError(f"--{' and --'.join(names)} set the same dial; give one")
    check_rate(tokens_per_second)
    targets = {"kv_density": kv_density, "channel_density": channel_density, "bits": bits}
    if schedule is not None and is_constant(schedule):
        given = {**dials, **targets}
        if names := [name.replace("_", "-") for name, value in given.items() if value is not None]:
            raise UsageError(f"--schedule {schedule} fixes the action; leave out --{' --'.join(names)}")
    return {"schedule": schedule, **dials, **targets}


def check_rate(tokens_per_second: float | None) -> None:
    """Raises UsageError for a `--tokens-per-second` that is no finite number over 0."""
    if tokens_per_second is not None and not 0 < tokens_per_second < float("inf"):
        raise UsageError(f"--tokens-per-second {tokens_per_second:g}: expected a finite number over 0")


def read_text(path: Path) -> str:
    """Reads a file's text, or stdin's for the path `-`, without a byte order mark.

    Raises UsageError if it cannot be read, is not UTF-8, or is larger than MOST_TEXT.
    """
    piped = str(path) == "-"
    where = "stdin" if piped else str(path)
    try:
        content = read_all(sys.stdin.buffer, MOST_TEXT, where) if piped else read_bytes(path, MOST_TEXT, pipes=True)
    except OSError as error:
        advice = _ANOTHER if isinstance(error, TooLargeError) else "name a file of text"
        raise UsageError(f"{where}: {error.strerror or error}; {advice}") from None
    return _text(content, where)


def _text(content: bytes, name: str) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name}: byte {error.start} is not UTF-8; convert it, for example with iconv") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")
