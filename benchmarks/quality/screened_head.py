"""Compares ways of reading the LM head: every row at 4, 6 or 8 bits, and screened with some numbers of candidates, by
4 bits of every row and, where the bundle has a matrix for it, by 3.

    python benchmarks quality.screened_head smollm2-135m -f valid.tokens.txt --windows 16
    python benchmarks quality.screened_head smollm2-135m -f valid.tokens.txt --windows 0 --time 12

Hidden states are those of one action on the second halves of windows of 512 tokens, after dense first halves. Every LM
head gets the same ones. Prints a Markdown table with a row for each way: bytes of a step, loss over the widest whole LM
head, the divergence from it, and the share of positions at which greedy decoding and top-k sampling (40, temperature 1,
the same random numbers) take the same token. Offsets are fitted on two windows that are not scored. With `--time`,
steps of that many rounds are timed in turn, each way in a graph of its own.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from sol_rt.bundle.actions import Action
from sol_rt.bundle.bits import Precision
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import screened_bytes
from sol_rt.engine.engine import Engine
from sol_rt.evaluation.quality.perplexity import text_windows
from sol_rt.export.actions.lm_head_bits import Head, with_heads
from sol_rt.export.actions.tail_offset import Tails
from sol_rt.export.graphs.graph import head_tensors, widest_bits
from sol_rt.export.graphs.screen_graph import first_passes
from sol_rt.export.sources.decoder import Decoder, from_hf_config
from sol_rt.export.sources.folder.hf_checkpoint import read_json
from sol_rt.generate.model import SolModel
from sol_rt.ops import library_path

import onnxruntime as ort

_WINDOW, _ROWS, _FITTED, _TOP_K = 512, 64, 2, 40
_TYPES = {"uint8": TensorProto.UINT8, "int8": TensorProto.INT8, "float16": TensorProto.FLOAT16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="folder, or the name of an exported bundle")
    parser.add_argument("-f", "--file", type=Path, required=True, help="text to score")
    parser.add_argument("-a", "--action", default="k100-s100-q4")
    parser.add_argument("--windows", type=int, default=16, help="windows to score")
    parser.add_argument("--candidates", default="256,512,1024,2048", help="numbers of candidates, separated by commas")
    parser.add_argument("--time", type=int, default=0, help="rounds of timed steps")
    parser.add_argument("-t", "--threads", type=int)
    args = parser.parse_args()
    model = SolModel.from_pretrained(args.bundle, threads=args.threads, provider="cpu", measure_costs=False)
    if library_path() is None:
        raise SystemExit("screened_head.py: the native operators are not built; build them, or install a wheel")
    action, text = Action.parse(args.action), args.file.read_text(encoding="utf-8")
    cut = text_windows(text, model.tokenizer, model.bundle.config.model, _WINDOW, args.windows + _FITTED)
    folder = Path(model.bundle.path)
    decoder = from_hf_config(read_json(folder / "config.json"), model.bundle.config.model.max_context)
    sizes = [int(size) for size in args.candidates.split(",")]
    heads = _heads(model.engine, decoder, action, cut[:_FITTED], sizes)
    if args.windows:
        _compare(model.engine, decoder, action, cut[_FITTED:], heads)
    if args.time:
        _time(model.bundle, decoder, action, heads, cut[0], args.time)


def _told(head: Head) -> str:
    if not head.candidates:
        return f"{head.bits} bits"
    return f"{head.first_bits} bits, {head.bits} of {head.candidates} rows"


def _heads(
    engine: Engine, decoder: Decoder, action: Action, cut: Sequence[Sequence[int]], sizes: Sequence[int]
) -> list[Head]:
    """Whole LM heads, the widest last, then the screened ones."""
    tensors = engine.bundle.config.tensors
    widest, passes = widest_bits(tensors), first_passes(tensors, decoder)
    whole = [Head(bits) for bits in range(4, widest + 1, 2)]
    # one candidate, the likeliest token, which each screen has: all other logits are scores
    session = _session(engine, decoder, [Head(widest), *(Head(widest, 1, 0.0, bits) for bits in passes)])
    found = [session.run(None, {"x": hidden}) for hidden, _ in _hidden_states(engine, action, cut)]
    exact, *scores = (np.concatenate(each) for each in zip(*found, strict=True))
    return whole + [
        Head(widest, size, tails.fitted_offset(), bits)
        for bits, of_pass in sorted(zip(passes, scores, strict=True), key=lambda each: -each[0])
        for size, tails in Tails.of(of_pass, exact, sizes).items()
    ]


def _hidden_states(
    engine: Engine, action: Action, cut: Sequence[Sequence[int]]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields hidden states of some positions, float32 [rows, hidden], and the tokens that follow them, int64 [rows]."""
    half = _WINDOW // 2
    for window in cut:
        engine.reset()
        engine.forward(window[:half], engine.bundle.config.dense)
        for start in range(half, len(window) - 1, _ROWS):
            part = window[start : min(start + _ROWS, len(window) - 1)]
            hidden = engine.forward(part, action, num_logits=len(part)).hidden
            yield hidden.copy(), np.array(window[start + 1 : start + 1 + len(part)])


def _session(engine: Engine, decoder: Decoder, heads: Sequence[Head]) -> ort.InferenceSession:
    """The LM heads alone: x [rows, hidden] -> logits [rows, vocab] of each."""
    if decoder.head_bias or decoder.logits_cap:
        raise SystemExit("screened_head.py: the model changes logits after the LM head, which is not measured here")
    inputs = {head: head_tensors(decoder, Precision(head.bits, head.bits, None, head.screen)) for head in heads}
    tensors = []
    for name in dict.fromkeys(name for names in inputs.values() for name in names):
        entry = engine.weights.entry(name)
        raw = engine.weights.raw(name).tobytes()
        tensors.append(helper.make_tensor(name, _TYPES[entry.dtype], entry.shape, raw, raw=True))
    nodes, sizes = [], {"K": decoder.hidden_size, "N": decoder.vocab_size}
    for index, head in enumerate(heads):
        attributes = {**sizes, "bits": head.bits, **(head.screen.attributes if head.screen else {})}
        nodes.append(helper.make_node("NestedMatMul", ["x", *inputs[head]], [f"y{index}"], domain="sol", **attributes))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", decoder.hidden_size])
    outputs = [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None) for node in nodes]
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("sol", 1)]
    graph = helper.make_graph(nodes, "heads", [x], outputs, tensors)
    made: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=11)
    options = ort.SessionOptions()
    options.use_per_session_threads = False  # those of the engine
    options.register_custom_ops_library(str(library_path()))
    return ort.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _compare(
    engine: Engine, decoder: Decoder, action: Action, cut: Sequence[Sequence[int]], heads: Sequence[Head]
) -> None:
    """Prints the table of losses and choices."""
    session, rng = _session(engine, decoder, heads), np.random.default_rng(0)
    exact = next(index for index, head in enumerate(heads) if head == Head(max(each.bits for each in heads)))
    losses: list[list[np.ndarray]] = [[] for _ in heads]
    divergences: list[list[np.ndarray]] = [[] for _ in heads]
    greedy, sampled, same_set = (np.zeros(len(heads), int) for _ in range(3))
    for hidden, targets in _hidden_states(engine, action, cut):
        draws = rng.random(len(targets))
        logits = session.run(None, {"x": hidden})
        choices = [_choices(each, draws) for each in logits]
        likely, at = np.exp(logits[exact] - _log_sum(logits[exact])[:, None]), (np.arange(len(targets)), targets)
        for index, each in enumerate(logits):
            lost = _log_sum(each) - _log_sum(logits[exact])  # what other sums alone lose
            losses[index].append(lost + logits[exact][at] - each[at])
            divergences[index].append(lost + np.einsum("rv,rv->r", likely, logits[exact] - each))
            greedy[index] += int((choices[index][0] == choices[exact][0]).sum())
            sampled[index] += int((choices[index][1] == choices[exact][1]).sum())
            same_set[index] += int((choices[index][2] == choices[exact][2]).all(-1).sum())
    positions = sum(map(len, losses[0]))
    print(f"{positions} positions, {action.tag}\n")
    titles = "LM head", "MB of a step", "loss, nats", "divergence, nats", "same greedy", "same top 40", "same sampled"
    print(f"| {' | '.join((*titles, 'offset'))} |\n|---{'|--:' * len(titles)}|")
    for index, head in enumerate(heads):
        size, loss = _bytes(engine.bundle, decoder, head), np.concatenate(losses[index])
        error = loss.std(ddof=1) / positions**0.5
        print(
            f"| {_told(head)} | {size / 1e6:.2f} | {loss.mean():.4f} ± {error:.4f} "
            f"| {np.concatenate(divergences[index]).mean():.4f} | {greedy[index] / positions:.3%} "
            f"| {same_set[index] / positions:.3%} | {sampled[index] / positions:.3%} | {head.tail_offset:.4f} |"
        )


def _log_sum(logits: np.ndarray) -> np.ndarray:
    """Logarithms of the sums of exponentials of the rows, float32 [rows]."""
    most = logits.max(-1)
    return np.asarray(most + np.log(np.exp(logits - most[:, None]).sum(-1)))


def _choices(logits: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns three arrays by row: the likeliest token, the token that a draw takes among the 40 likeliest, and the 40
    in order.
    """
    top = np.sort(np.argpartition(logits, -_TOP_K, axis=-1)[:, -_TOP_K:], axis=-1)
    kept = np.take_along_axis(logits, top, -1)
    shares = np.exp(kept - _log_sum(kept)[:, None]).cumsum(-1)
    at = np.minimum((shares < draws[:, None]).sum(-1), _TOP_K - 1)
    return logits.argmax(-1), top[np.arange(len(top)), at], top


def _bytes(bundle: Bundle, decoder: Decoder, head: Head) -> int:
    """Bytes of the LM head that a step reads."""
    read = {
        name: bundle.config.tensors[name]
        for name in head_tensors(decoder, Precision(head.bits, head.bits, None, head.screen))
    }
    if head.screen is None:
        return sum(tensor.bytes for tensor in read.values())
    return sum(screened_bytes(name, tensor, head.screen) for name, tensor in read.items())


def _time(
    bundle: Bundle,
    decoder: Decoder,
    action: Action,
    heads: Sequence[Head],
    text: Sequence[int],
    rounds: int,
) -> None:
    """Prints the milliseconds of a step after `text` with each LM head: quartiles over rounds of a round's least."""
    with tempfile.TemporaryDirectory() as made:
        engines = []
        for index, head in enumerate(heads):
            copy = Path(made) / str(index)
            shutil.copytree(bundle.path, copy, copy_function=_link)
            for variant in bundle.config.variants.values():
                (copy / variant.file).unlink(missing_ok=True)
            plain = {variant.bits: Head.of(variant) for variant in bundle.config.variants.values()}
            config = with_heads(copy, bundle.config, decoder, {**plain, action.bits: head})
            engine = Engine(Bundle(copy, config, identity="", verify=False), provider="cpu")
            engine.forward(text, config.dense)
            engines.append(engine)
        times: list[list[float]] = [[] for _ in heads]
        for _ in range(rounds):
            for index, engine in enumerate(engines):
                times[index].append(min(_step(engine, action, len(text)) for _ in range(16)))
    print("\n| LM head | ms of a step |\n|---|--:|")
    for head, found in zip(heads, times, strict=True):
        low, middle, high = statistics.quantiles(found, n=4)
        print(f"| {_told(head)} | {middle:.2f} [{low:.2f}, {high:.2f}] |")


def _step(engine: Engine, action: Action, length: int) -> float:
    engine.truncate(length)
    began = time.perf_counter()
    engine.forward([1], action)
    return 1e3 * (time.perf_counter() - began)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


if __name__ == "__main__":
    main()
