"""Number of threads of a step: affinity, quotas of control groups, slow cores of hybrid processors.

And how much memory control groups leave.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.core_build import core_program, run_lines
from sol_rt.engine.hardware import allowed_cores, usable_cores
from sol_rt.engine.hardware.memory import below_limits


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def capacities(*each: int) -> dict[str, str]:
    return {f"sys/devices/system/cpu/cpu{number}/cpu_capacity": str(value) for number, value in enumerate(each)}


@pytest.fixture(scope="module")
def program() -> Path:
    return core_program("cores")


def test_this_machine_has_a_usable_core(program: Path) -> None:
    assert 1 <= usable_cores() <= len(allowed_cores())
    assert run_lines([str(program)], []) == [str(usable_cores())]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, 8),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "250000 100000"}, 2),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "50000 100000"}, 1),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "1600000 100000"}, 8),
        # the group above has the limit
        (
            {
                "proc/self/cgroup": "0::/pod/app",
                "sys/fs/cgroup/pod/cpu.max": "300000 100000",
                "sys/fs/cgroup/pod/app/cpu.max": "max 100000",
            },
            3,
        ),
        # the older form, two controllers in one mount
        (
            {
                "proc/self/cgroup": "4:memory:/x\n2:cpu,cpuacct:/docker/y",
                "sys/fs/cgroup/cpu,cpuacct/docker/y/cpu.cfs_quota_us": "400000",
                "sys/fs/cgroup/cpu,cpuacct/docker/y/cpu.cfs_period_us": "100000",
            },
            4,
        ),
        # in a container the mount is the group itself; -1 is no limit
        (
            {
                "proc/self/cgroup": "1:cpu:/docker/y",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            8,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/docker/y",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            2,
        ),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "garbage"}, 8),
        ({"proc/self/cgroup": "nothing", "sys/fs/cgroup/cpu.max": "200000 0"}, 8),
        # hybrid: Intel's efficient cores, then Arm's little ones
        ({"sys/devices/cpu_atom/cpus": "4-7"}, 4),
        ({"sys/devices/cpu_atom/cpus": "0-7"}, 8),
        (
            {f"sys/devices/system/cpu/cpu{n}/cpu_capacity": str((400, 900, 1024)[(n > 3) + (n > 6)]) for n in range(8)},
            4,
        ),
        (capacities(400, 400, 400, 400, 900, 900, 900, 1024), 4),
        (capacities(*[1024] * 8), 8),
    ],
)
def test_quotas_and_slow_cores(program: Path, tmp_path: Path, files: dict[str, str], expected: int) -> None:
    root = write(tmp_path, files)
    assert run_lines([str(program), str(root), "8"], []) == [str(expected)]


def newer(folder: str, limit: object, used: int, cached: int) -> dict[str, str]:
    name = f"sys/fs/cgroup/{folder}memory"
    stat = f"anon 7\ninactive_file {cached}\nactive_file 9"
    return {f"{name}.max": str(limit), f"{name}.current": str(used), f"{name}.stat": stat}


def older(folder: str, limit: int, used: int, cached: int) -> dict[str, str]:
    name = f"sys/fs/cgroup/memory/{folder}memory"
    stat = f"inactive_file 1\ntotal_inactive_file {cached}"
    return {f"{name}.limit_in_bytes": str(limit), f"{name}.usage_in_bytes": str(used), f"{name}.stat": stat}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/"}, None),
        # in a container the mount is the group itself
        ({"proc/self/cgroup": "0::/", **newer("", 1000, 600, 50)}, 450),
        ({"proc/self/cgroup": "0::/", **newer("", 1000, 1200, 50)}, 0),
        ({"proc/self/cgroup": "0::/", **newer("", "max", 600, 50)}, None),
        # outside of one the root has no limit, and the nearest one holds
        ({"proc/self/cgroup": "0::/a/b", **newer("a/b/", 1000, 600, 50), **newer("a/", 2000, 900, 0)}, 450),
        ({"proc/self/cgroup": "0::/a/b", **newer("a/b/", "max", 600, 50), **newer("a/", 2000, 1900, 20)}, 120),
        # the older form, beside a newer one without a controller
        ({"proc/self/cgroup": "4:memory:/docker/x\n0::/", **older("", 1000, 600, 50)}, 450),
        ({"proc/self/cgroup": "4:cpu:/y\n3:memory:/y", **older("y/", 1000, 600, 50), **older("", 1 << 62, 9, 0)}, 450),
        ({"proc/self/cgroup": "0::/", **newer("", "garbage", 600, 50)}, None),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/memory.max": "1000"}, None),
        ({"proc/self/cgroup": "0::/", **newer("", 1000, 600, 50), "sys/fs/cgroup/memory.stat": "inactive_file "}, 400),
    ],
)
def test_memory_is_bounded_by_control_groups(tmp_path: Path, files: dict[str, str], expected: int | None) -> None:
    assert below_limits(write(tmp_path, files)) == expected
