"""Compiles in the background what tests need:   python -m helpers.native_builds [core programs]

`make test-all` starts it, and `make test` for `core` and `programs`. A test waits for the build that it needs, and
builds what it does not find: what fails here fails there again, in a test.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from helpers import emulated_build, sanitized_build
from helpers.core_build import ADDRESS, PROGRAMS, THREAD, core_build

ENGINE = ("engine_steps", "golden", "session_calls", "step_calls", "mask_calls", "batch_calls", "host_engine_calls")


def emulated(*, races: bool) -> None:
    """Leaves the objects in ccache's folder: the tests compile them into their own."""
    if emulated_build.CCACHE and emulated_build.COMPILER and emulated_build.INCLUDE:
        with TemporaryDirectory() as folder:
            emulated_build.build(Path(folder), races=races)


def sanitized(sanitize: str) -> None:
    best = sanitized_build.best_target()
    sanitized_build.build(sanitize, *([best] if sanitize == ADDRESS else []))


BUILDS: dict[str, Callable[[], object]] = {
    # in the order of the tests
    "core": partial(core_build, "text_driver", "model_calls", *ENGINE),
    "programs": partial(core_build, *PROGRAMS),
    "core-address-plain": partial(core_build, "text_driver", *PROGRAMS, *ENGINE, sanitize=ADDRESS, operators=False),
    "emulated": partial(emulated, races=False),
    "emulated, races": partial(emulated, races=True),
    "core-thread-plain": partial(core_build, *ENGINE, sanitize=THREAD, operators=False),
    "sanitized/address": partial(sanitized, ADDRESS),
    "sanitized/thread": partial(sanitized, THREAD),
}


def main() -> None:
    for name in sys.argv[1:] or [name for name in BUILDS if name != "programs"]:  # which slow tests run sanitized
        build = BUILDS[name]
        begin, ended = time.monotonic(), "built"
        try:
            build()
        except (Exception, pytest.skip.Exception) as error:
            ended = f"not built: {error}"
        print(f"{name}: {ended}, {time.monotonic() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
