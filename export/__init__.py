"""From a checkpoint to a bundle: graphs, quantized weights, tokenizer, model card. Needs the extra `export`.

May import: sol_rt.generate and the folders below it. Inside, from top to bottom: pipeline; card, migrate, parity,
policy_file; actions; graphs; blob; sources; quantize.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sol_rt.export.pipeline import export_bundle

__all__ = ["export_bundle"]


def __getattr__(name: str) -> Any:
    # on first use: the descriptions in here serve the torch reference model too, which needs neither onnx nor
    # transformers
    if name == "export_bundle":
        from sol_rt.export.pipeline import export_bundle

        return export_bundle
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
