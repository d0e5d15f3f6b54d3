"""Exports a checkpoint to a bundle: sources, quantization, graphs, choice of actions. Needs the extra `export`.

pipeline.py runs the stages; docs/design/export.md describes them. May import: sol_rt.generate and the folders below it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sol_rt.export.pipeline import export_bundle

__all__ = ["export_bundle"]


def __getattr__(name: str) -> Any:
    # imported on first use: sol_rt.train uses sources and quantize, and needs neither onnx nor transformers for them
    if name == "export_bundle":
        from sol_rt.export.pipeline import export_bundle

        return export_bundle
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
