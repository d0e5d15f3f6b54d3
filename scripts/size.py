"""Prints files, lines and words of each folder of the repository, at one commit or at two beside each other.

    python scripts/size.py
    python scripts/size.py 8bd3f452 HEAD
    python scripts/size.py --depth 2 sol_rt bindings

Lines are those of text files, blank ones included; words are those of Markdown pages, as `wc -w` counts them. Data of
tests, models and pictures are left out.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import tarfile
from collections import defaultdict
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[1]
DATA = ("runtime_tests/corpus/", "runtime_tests/golden/tiny/", "models/", "docs/images/", "docs/results/data/")


def sizes(commit: str, depth: int, folders: list[str]) -> dict[str, list[int]]:
    """Counts [files, lines, words] by folder of at most `depth` names."""
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", commit, *folders], capture_output=True, check=True)
    found: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        for member in files:
            file = files.extractfile(member)
            if file is None or member.name.startswith(DATA):
                continue
            try:
                text = file.read().decode()
            except UnicodeDecodeError:
                continue
            row = found["/".join(PurePosixPath(member.name).parts[:-1][:depth]) or "."]
            row[0] += 1
            row[1] += text.count("\n")
            row[2] += len(text.split()) if member.name.endswith(".md") else 0
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help="up to two commits, and folders to count alone")
    parser.add_argument("--depth", type=int, default=1, help="names of folders in a row (default: 1)")
    args = parser.parse_args()
    folders = [name for name in args.names if (ROOT / name).exists()]
    commits = [name for name in args.names if name not in folders] or ["HEAD"]
    columns = [sizes(commit, args.depth, folders) for commit in commits]
    print("| folder |" + "".join(f" files, {commit} | lines | words |" for commit in commits))
    print("|---|" + "--:|--:|--:|" * len(commits))
    for folder in sorted(set().union(*columns)):
        print(f"| {folder} |" + "".join(" {:,} | {:,} | {:,} |".format(*column[folder]) for column in columns))
    totals = [[sum(row[i] for row in column.values()) for i in range(3)] for column in columns]
    print("| **all** |" + "".join(" {:,} | {:,} | {:,} |".format(*total) for total in totals))


if __name__ == "__main__":
    main()
