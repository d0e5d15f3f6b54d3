"""llama.cpp's own server, from the package xllamacpp, at a free port that it says on stderr.

    python llama_cpp_server.py FILE.gguf --slots N --context T --threads N

Continuous batching and reuse of prompts are on, its defaults.
"""

from __future__ import annotations

import argparse
import sys
import threading

import xllamacpp


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--slots", type=int, default=4, help="answers at a time")
    parser.add_argument("--context", type=int, default=1024, help="tokens of each slot")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--drafts", help="its own drafts: ngram_simple, ngram_mod, ngram_cache, ngram_map_k")
    args = parser.parse_args()
    params = xllamacpp.CommonParams()
    params.model.path, params.port, params.verbosity = args.file, 0, 0
    params.n_parallel, params.n_ctx = args.slots, args.slots * args.context
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = args.threads
    if args.drafts:
        kinds = xllamacpp.common_speculative_type
        params.speculative.types = [getattr(kinds, f"COMMON_SPECULATIVE_TYPE_{args.drafts.upper()}")]
    server = xllamacpp.Server(params)
    build = " ".join(xllamacpp.get_system_info().split())
    print(f"{server.listening_address}/v1 xllamacpp {xllamacpp.__version__}, {build}", file=sys.stderr, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
