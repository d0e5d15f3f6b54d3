"""Readings of this machine's battery and heat, by the package psutil."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable
from typing import Any

from sol_rt.errors import UsageError

_DEGREES_OF_HEADROOM = 30.0
"""Degrees Celsius from a headroom of 0 to one of 1, as Android counts."""
_PLAUSIBLE = 40.0, 130.0
"""Degrees Celsius between which a sensor's limit is believed; drivers report 0 or 65261 where they know none."""


class Sensors:
    """Battery and temperatures.

    Raises UsageError if psutil is missing.
    """

    def __init__(self) -> None:
        try:
            self._psutil: Any = importlib.import_module("psutil")
        except ImportError:
            raise UsageError("--governor needs psutil; run pip install 'sol-rt[governor]', or leave it out") from None

    def battery(self) -> tuple[float | None, bool]:
        """The battery's level, 0 to 1, and whether the machine is plugged in; None and False where there is none."""
        read = getattr(self._psutil, "sensors_battery", None)
        found = None if read is None else read()
        return (None, False) if found is None else (found.percent / 100, bool(found.power_plugged))

    def headroom(self) -> float | None:
        """Thermal headroom, 1 where a part reaches the temperature that its sensor calls high; None if none does."""
        read = getattr(self._psutil, "sensors_temperatures", None)
        groups = {} if read is None else read()
        return hottest((entry.current, entry.high, entry.critical) for group in groups.values() for entry in group)


def hottest(sensors: Iterable[tuple[float | None, float | None, float | None]]) -> float | None:
    """The largest headroom of sensors, each with its temperature and its high and critical limits in degrees Celsius.

    A sensor without a plausible limit is left out. None if that leaves none.
    """
    found = []
    for current, high, critical in sensors:
        limits = [limit for limit in (high, critical) if limit is not None and _PLAUSIBLE[0] <= limit <= _PLAUSIBLE[1]]
        if limits and current is not None and math.isfinite(current):
            found.append(max(0.0, 1.0 - (limits[0] - current) / _DEGREES_OF_HEADROOM))
    return max(found, default=None)
