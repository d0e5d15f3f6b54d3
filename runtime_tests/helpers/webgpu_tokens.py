"""Run by test_webgpu.py in a process of its own: what every variant gives on WebGPU, as JSON on stdout.

A driver that crashes takes only this process with it, and the software adapter has to be allowed before ONNX Runtime
starts.
"""

from __future__ import annotations

import json
import sys

from helpers.greedy import greedy
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.errors import ProviderError
from sol_rt.generate.native.engine import Engine

NO_ADAPTER = 3
"""Exit code where there is no WebGPU device."""


def main() -> int:
    folder, prompt, count = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
    bundle = Bundle.open(folder)
    try:
        engine = Engine(bundle, provider="webgpu")
    except ProviderError as error:
        print(error, file=sys.stderr)
        return NO_ADAPTER
    results = {}
    for variant in bundle.config.variants.values():
        dense, sparse = (Action(kv_density, variant.channel_density, variant.bits) for kv_density in (1.0, 0.5))
        engine.reset()
        found = results[variant.key] = {"logits": engine.forward(prompt, dense, num_logits=len(prompt)).logits.tolist()}
        if variant.channel_density == 1.0:
            if sparse in [entry.action for entry in bundle.config.actions]:
                found["step"] = engine.forward(prompt[:1], sparse).logits[0].tolist()
            run = greedy(engine, prompt, dense, count)
            found |= {"tokens": run.tokens, "margins": run.margins}
    json.dump(results, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
