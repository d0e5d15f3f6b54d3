"""The log of a training: what TensorBoard reads of it, and a disk that takes no more."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="training comes with the extra train")
pytest.importorskip("tensorboard", reason="training comes with the extra train")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sol_rt.errors import WriteError
from sol_rt.train.run.log import LOG, TENSORBOARD, TrainLog


def values(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values by tag, as TensorBoard reads them."""
    read = EventAccumulator(str(folder / TENSORBOARD))
    read.Reload()
    return {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def test_tensorboard_reads_the_figures(tmp_path: Path) -> None:
    log = TrainLog(tmp_path)
    log.write("warm start", 1, {"loss": 0.5, "note": "text", "gain": float("nan")}, part="0.6/")
    log.write("warm start", 2, {"loss": 0.25}, part="0.6/")
    assert values(tmp_path) == {"warm start/0.6/loss": [(1, 0.5), (2, 0.25)]}  # readable while the training goes on
    log.close()
    rows = [json.loads(line) for line in (tmp_path / LOG).read_text(encoding="utf-8").splitlines()]
    assert rows[0] == {"stage": "warm start", "step": 1, "loss": 0.5, "note": "text", "gain": None}


def test_a_resumed_training_replaces_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    first = TrainLog(tmp_path)
    first.write("grpo", 1, {"loss": 1.0})
    size = first.size
    first.write("grpo", 2, {"loss": 2.0})
    first.close()
    second = TrainLog(tmp_path, size, 2)
    second.write("grpo", 2, {"loss": 3.0})
    second.close()
    assert values(tmp_path) == {"grpo/loss": [(1, 1.0), (2, 3.0)]}
    rows = [json.loads(line) for line in (tmp_path / LOG).read_text(encoding="utf-8").splitlines()]
    assert [row["loss"] for row in rows] == [1.0, 3.0]


def test_a_log_that_was_lost_is_begun_anew(tmp_path: Path) -> None:
    log = TrainLog(tmp_path, 1000, 2)
    log.write("grpo", 3, {"loss": 3.0})
    log.close()
    assert json.loads((tmp_path / LOG).read_text(encoding="utf-8"))["step"] == 3


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The system refuses to write files beyond `size` bytes. Python ignores the signal of that."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.skipif(sys.platform == "win32", reason="limits of the size of files are POSIX's")
@pytest.mark.parametrize("room", [0, 20, 70, 100])
def test_a_disk_without_room_is_one_error_at_once(tmp_path: Path, room: int, capfd: pytest.CaptureFixture[str]) -> None:
    """TensorBoard's own writer reported it at a later write, without a name, and printed a traceback."""
    failed = None
    with largest_file(room):
        try:
            TrainLog(tmp_path).write("grpo", 1, {"loss": 1.0})
        except WriteError as error:
            failed = error
    assert failed is not None
    assert failed.path.startswith((str(tmp_path / TENSORBOARD), str(tmp_path / LOG)))
    assert capfd.readouterr().err == ""
