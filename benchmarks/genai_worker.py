"""onnxruntime-genai behind a pipe: one JSON request a line on stdin, one JSON answer a line on stdout.

Runs under the peer's own Python, which needs onnxruntime-genai and numpy alone. Requests:

    {"do": "prefill", "tokens": [...]}              -> {"ms": time of appending them, last logits included}
    {"do": "decode", "tokens": [...], "count": n}   -> {"ms": time of n greedy steps after them}
    {"do": "nll", "windows": [[...], ...]}          -> {"nll": [[nats of every scored token], ...]}

Scored are, as by llama-perplexity, a window's tokens after the first c/2 + 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np


def load(folder: Path, threads: int):  # type: ignore[no-untyped-def]
    import onnxruntime_genai as og

    config = og.Config(str(folder))
    overlay = {"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}
    config.overlay(json.dumps(overlay))
    return og, og.Model(config)


def window_nll(session: object, window: list[int]) -> list[float]:
    """Nats of the scored tokens, by the model's graph run directly: genai itself gives only last logits."""
    ids = np.asarray([window], np.int64)
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    for node in session.get_inputs():  # type: ignore[attr-defined]
        if node.name.startswith("past_key_values"):
            heads, size = node.shape[1], node.shape[3] if isinstance(node.shape[3], int) else None
            feeds[node.name] = np.zeros((1, heads, 0, size or session.head_size), np.float32)  # type: ignore[attr-defined]
    logits = session.run(["logits"], feeds)[0][0].astype(np.float64)  # type: ignore[attr-defined]
    first = len(window) // 2
    rows = logits[first:-1]
    log_sum = np.log(np.exp(rows - rows.max(1, keepdims=True)).sum(1)) + rows.max(1)
    return [float(x) for x in log_sum - rows[np.arange(len(rows)), window[first + 1 :]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    og, model = load(args.folder, args.threads)
    search = {"do_sample": False, "past_present_share_buffer": True}
    session = None
    print(json.dumps({"version": og.__version__}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "nll":
            if session is None:
                import onnxruntime as ort

                options = ort.SessionOptions()
                options.intra_op_num_threads = args.threads
                session = ort.InferenceSession(args.folder / "model.onnx", options)
                config = json.loads((args.folder / "genai_config.json").read_text())
                session.head_size = config["model"]["decoder"]["head_size"]
            print(json.dumps({"nll": [window_nll(session, window) for window in request["windows"]]}), flush=True)
            continue
        count = request.get("count", 0)
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=len(request["tokens"]) + count + 1, **search)
        generator = og.Generator(model, params)
        start = time.perf_counter()
        generator.append_tokens(np.asarray(request["tokens"], np.int32))
        generator.get_logits()
        if request["do"] == "decode":
            generator.generate_next_token()
            start = time.perf_counter()
            for _ in range(count):
                generator.generate_next_token()
        print(json.dumps({"ms": (time.perf_counter() - start) * 1e3}), flush=True)


if __name__ == "__main__":
    main()
