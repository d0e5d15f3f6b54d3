"""A graph of the first passes of screened LM heads alone: the scores that hidden states give the rows.

    x float [1, positions, hidden]  ->  scores_4 float [1, positions, vocab], scores_3 float [1, positions, columns]

The scores at 3 bits are there if the weights hold a matrix of 3 bits that screens the LM head.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from sol_rt.bundle.bits import THREE, screen_columns, screen_matrix
from sol_rt.bundle.config import CODEBOOK, TensorEntry
from sol_rt.bundle.weights import SharedWeights
from sol_rt.export.graphs.functions import operators as bodies
from sol_rt.export.graphs.graph import reference
from sol_rt.export.graphs.layer import weight_names
from sol_rt.export.graphs.nodes import NodeWriter
from sol_rt.export.quantize.nested import FloatArray
from sol_rt.export.sources.decoder import Decoder
from sol_rt.generate.native.engine import Engine

_FILE = "scores.onnx"


def first_passes(tensors: Mapping[str, TensorEntry], decoder: Decoder) -> tuple[int, ...]:
    """The bits of the first passes that the LM head has matrices for."""
    return (THREE, 4) if f"{screen_matrix(decoder.lm_head)}.{CODEBOOK}" in tensors else (4,)


def screen_scores(engine: Engine, decoder: Decoder, hidden: FloatArray) -> dict[int, FloatArray]:
    """The scores of all rows by bits of the first pass, float32 [positions, vocab].

    Args:
        engine: of a bundle. A graph is written into its folder for the time of the call.
        decoder: the model.
        hidden: float32 [positions, hidden].
    """
    config, writer, functions, used = engine.bundle.config, NodeWriter(), [], []
    passes, k = first_passes(config.tensors, decoder), decoder.hidden_size
    for bits in passes:
        three = bits == THREE
        names = weight_names(screen_matrix(decoder.lm_head) if three else decoder.lm_head, bits)
        outputs = screen_columns(decoder.vocab_size) if three else decoder.vocab_size
        inputs = ["x", writer.ints(0), *names] if three else ["x", *names]
        body = bodies.pruned_matmul(bits) if three else bodies.nested_matmul(bits)
        writer.op(body.name, *inputs, out=f"scores_{bits}", domain="sol", K=k, N=outputs, bits=bits)
        functions.append(body)
        used += names
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, None, k])
    results = [helper.make_tensor_value_info(f"scores_{bits}", TensorProto.FLOAT, None) for bits in passes]
    weights = [reference(name, config.tensors[name], config.weights_file) for name in used]
    options, stored = engine.provider.options(), SharedWeights(engine.bundle)
    for name in used:
        options.add_initializer(name, stored.value(name))
    model = writer.model("scores", [x], results, weights, functions)
    path = Path(engine.bundle.path) / _FILE
    path.write_bytes(model.SerializeToString())
    try:
        session = engine.provider.session(path, options)
    finally:
        path.unlink()
    found = session.run([result.name for result in results], {"x": np.asarray(hidden[None])})
    return {bits: scores[0, :, : decoder.vocab_size] for bits, scores in zip(passes, found, strict=True)}
