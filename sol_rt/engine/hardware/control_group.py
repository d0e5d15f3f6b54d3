"""The control groups that this process is in, where their limits are written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def group_folders(controller: str, root: Path = Path("/")) -> Iterator[Path]:
    """The folders of this process's control group and of those above it, of the newer form and of the older.

    Some may not exist: in a container the mount is the group itself.

    Args:
        controller: what is limited, such as `cpu` or `memory`; in the older form each has groups of its own.
        root: where `proc` and `sys` are mounted.
    """
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if number == "0" and not controllers:
            yield from _upwards(root / "sys/fs/cgroup", group)
        elif controller in controllers.split(","):
            for mount in dict.fromkeys((controllers, controller)):
                yield from _upwards(root / "sys/fs/cgroup" / mount, group)


def _upwards(mount: Path, group: str) -> Iterator[Path]:
    folder = mount / group.strip("/")
    for place in (folder, *folder.parents):
        if not place.is_relative_to(mount):
            return
        yield place


def read_text(path: Path) -> str | None:
    """The text of a file of `proc` or `sys`, stripped; None where there is none."""
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None
