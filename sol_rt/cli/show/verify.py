"""`sol-rt verify` checks every byte of a bundle."""

from __future__ import annotations

from sol_rt.cli import options
from sol_rt.cli.console import print_json, progress


def verify(model: options.Model = None, json: options.Json = False, debug: options.Debug = False) -> None:
    """Check sizes, hashes and numbers of a bundle. The first fault gives one line and exit code 1."""
    from sol_rt.bundle.verify import verify_bundle
    from sol_rt.cli.loading import bundle_path
    from sol_rt.store.verified import remember_weights

    path = bundle_path(model)
    with progress() as report:
        result = verify_bundle(path, lambda done, total: report("checking weights", done, total))
    remember_weights(result.weights, result.weights_sha256)
    if json:
        print_json({"path": str(path), "files": result.files, "tensors": result.tensors, "bytes": result.bytes})
    else:
        print(f"{path}: {result.files} files, {result.tensors} tensors, {result.bytes / 1e6:.1f} MB: all as written")
