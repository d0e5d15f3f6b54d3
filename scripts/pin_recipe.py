"""Pins what an alias fetches from the model hub: `python scripts/pin_recipe.py phi-2`.

Writes the repository's present commit and the sha256 of every file that an export reads into models/ALIAS.json. From
then on `sol-rt pull` refuses anything else. Needs the network: small files are downloaded, for the hub states their
hash in another form.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from sol_rt.errors import SolError
from sol_rt.store.checkpoint import wanted_files
from sol_rt.store.hub import HubId, Listing, RemoteFile, hub_errors, list_files, open_file

MODELS = Path(__file__).resolve().parents[1] / "models"


def sha256_of(listing: Listing, file: RemoteFile) -> str:
    """The sha256 that the hub states of a large file, or that of a small file's content."""
    if len(file.digest) == 64:
        return file.digest
    with hub_errors(listing.hub_id), open_file(listing, file.name, 0) as (_, chunks):
        content = b"".join(chunks)
    stated = file.hasher()
    stated.update(content)
    if stated.hexdigest() != file.digest:
        raise SolError(f"{listing.hub_id}: {file.name}: the hub serves another file than it states; try again")
    return hashlib.sha256(content).hexdigest()


def pin(path: Path) -> int:
    """Pins the recipe in a file, and returns the number of files. Raises SolError."""
    recipe = json.loads(path.read_text(encoding="utf-8"))
    hub_id = HubId.parse(str(recipe.get("hub")))
    if hub_id is None:
        raise SolError(f"{path}: no hub id, so there is nothing to pin")
    listing = list_files(HubId(hub_id.repository))
    recipe["hub"] = f"{hub_id.repository}@{listing.commit}"
    recipe["files"] = {file.name: sha256_of(listing, file) for file in wanted_files(listing)}
    path.write_text(json.dumps(recipe, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return len(recipe["files"])


def main(names: list[str], models: Path = MODELS) -> int:
    try:
        for name in names:
            print(f"{name}: {pin(models / f'{name}.json')} files pinned")
    except (SolError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
