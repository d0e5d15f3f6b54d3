"""Rooms of the core's sources: includes point down only, as docs/design/architecture.md draws them."""

import re

from helpers.core_build import CORE

ROOMS = ("base", "text", "bundle", "engine", "budget", "generate", "api")


def test_includes_point_down_only() -> None:
    for file in (CORE / "src").rglob("*.[hc]*"):
        room = ROOMS.index(file.relative_to(CORE / "src").parts[0])
        for name in re.findall(r'#include "(\w+)/', file.read_text()):
            if name in ("common", "cpu"):  # of the operators, below all rooms
                continue
            assert ROOMS.index(name) <= room, f"{file} includes {name}/"


def test_a_core_without_the_cpu_engine_lacks_nothing() -> None:
    for file in (CORE / "src").rglob("*.[hc]*"):
        place = file.relative_to(CORE / "src").as_posix()
        if place.startswith("engine/ort/") or place == "api/runtime.cc":
            continue
        assert not re.search(r'#include ["<](engine/ort/|onnxruntime)', file.read_text()), (
            f"{place} includes the engine on ONNX Runtime"
        )
