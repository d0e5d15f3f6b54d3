"""Model families as data: one entry a family. Beside it only gguf/tokenizer.py has such names, GGUF's own.

To add a family whose decoder is like those here (envelope: see `Decoder` in decoder.py):
1. Add a `Family(...)` entry to a module of this package, and list it in `FAMILIES` below. Each field's meaning is in
   the docstring of `Family`.
2. Add a tiny checkpoint to `PRESETS` in runtime_tests/helpers/random_checkpoint.py: tests of families run them all.
3. If its GGUF files name a pre-tokenizer that is new, add it to `_PRE_TOKENIZERS` in gguf/tokenizer.py.
4. Optional: add a recipe, models/NAME.json, which makes NAME an alias for `sol-rt pull` and `sol-rt export`.
5. Run `sol-rt export`. It compares the graph with transformers and fails from a nat of difference on.
docs/reference/models.md shows that on an example.

A family outside the envelope needs more: fields of `Family` and `Decoder`, names in `TensorNames`, its tensors and
`vector_shape` in checkpoint.py, the function body in graphs/layer.py, the CPU and CUDA kernels under sol_rt/ops, the
reference model in train/reference_model, runtime_tests/helpers/random_decoder.py, and section 3 of
docs/reference/bundle-details.md.

May import: nothing of sol_rt, but `stored`, which reads checkpoints.
"""

from __future__ import annotations

from sol_rt.export.sources.families.ernie_hunyuan import ERNIE, HUNYUAN
from sol_rt.export.sources.families.family import (
    Family,
    GgufForm,
    LayerKind,
    NormPlace,
    QkNorm,
    TensorNames,
    Windows,
)
from sol_rt.export.sources.families.gemma import GEMMA2, GEMMA3
from sol_rt.export.sources.families.gpt_neox import GPT_NEOX, STABLELM
from sol_rt.export.sources.families.granite import GRANITE, GRANITE4
from sol_rt.export.sources.families.lfm2 import LFM2
from sol_rt.export.sources.families.llama import ARCEE, LLAMA, MINISTRAL3, MISTRAL, SMOLLM3
from sol_rt.export.sources.families.phi import PHI, PHI3
from sol_rt.export.sources.families.post_norm import EXAONE4, OLMO2, OLMO3
from sol_rt.export.sources.families.qwen import QWEN2, QWEN3

__all__ = ["FAMILIES", "Family", "GgufForm", "LayerKind", "NormPlace", "QkNorm", "TensorNames", "Windows"]

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        LLAMA,
        QWEN2,
        PHI3,
        PHI,
        QWEN3,
        GEMMA3,
        GEMMA2,
        SMOLLM3,
        MISTRAL,
        MINISTRAL3,
        GRANITE,
        GRANITE4,
        OLMO3,
        OLMO2,
        EXAONE4,
        ERNIE,
        HUNYUAN,
        STABLELM,
        GPT_NEOX,
        ARCEE,
        LFM2,
    )
}
"""By `model_type`."""
