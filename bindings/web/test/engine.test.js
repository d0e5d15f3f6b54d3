/** The engine's parts: the cache that grows, graph files that may not reach ONNX Runtime, and the memory of made weights. */
import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { mkdtemp, readFile, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";

import { Tensor } from "onnxruntime-common";

import { Bundle } from "../src/bundle/bundle.js";
import { externalTensors } from "../src/bundle/graph_file.js";
import { Graphs } from "../src/engine/graphs.js";
import { KvCache } from "../src/engine/kv_cache.js";
import { Runtime } from "../src/engine/runtime.js";
import { BundleError, SolModel } from "../src/index.js";
import { changedBundle, tiny } from "./changed_bundle.js";

const corpus = fileURLToPath(new URL("../../../runtime_tests/corpus", import.meta.url));
const skip = existsSync(tiny) ? false : "runtime_tests/golden is not there";
/** @type {string} */
let folder;

before(async () => {
  folder = await mkdtemp(join(tmpdir(), "sol-rt-web-"));
});
after(() => rm(folder, { recursive: true }));

/** A field of a protobuf message: a number, or bytes. @param {number} number @param {number | string | Uint8Array} value */
function field(number, value) {
  const varint = (/** @type {number} */ rest) => {
    const bytes = [];
    for (; rest >= 128; rest = Math.floor(rest / 128)) bytes.push((rest % 128) + 128);
    return [...bytes, rest];
  };
  if (typeof value === "number") return Buffer.from([...varint(8 * number), ...varint(value)]);
  return Buffer.concat([Buffer.from([...varint(8 * number + 2), ...varint(value.length)]), Buffer.from(value)]);
}

/** @param {Uint8Array[]} fields */
const joined = (...fields) => Buffer.concat(fields);

/** Every head's content of `tokens` tokens, by input. @param {KvCache} cache @param {number} tokens */
function contents(cache, tokens) {
  const { num_kv_heads: heads, head_dim: size } = cache.model;
  const past = Object.entries(cache.feeds()).filter(([name]) => name.startsWith("past_key_values."));
  return Object.fromEntries(past.map(([name, tensor]) => {
    const stride = tensor.dims[2] * size;
    const data = /** @type {Float32Array} */ (tensor.data);
    return [name, Array.from({ length: heads }, (_, head) => [...data.slice(head * stride, head * stride + tokens * size)])];
  }));
}

test("a cache that could not grow once keeps its content", async () => {
  let left = Infinity; // tensors for which there is memory
  class Scarce extends Tensor {
    /** @param {[any, any, any]} parts */
    constructor(...parts) {
      if (left-- <= 0) throw new RangeError("Array buffer allocation failed");
      super(...parts);
    }
  }
  const model = /** @type {any} */ ({ num_kv_heads: 3, head_dim: 2, num_layers: 2 });
  const layout = /** @type {any} */ ({ page_size: 4, capacity_step: 4 });
  const cache = new KvCache(/** @type {any} */ ({ Tensor: Scarce }), model, layout, "float32", true);
  await cache.grow(4, true);
  let value = 0;
  cache.adopt(Object.fromEntries(cache.outputs.map((name) => [
    name, /** @type {any} */ (new Tensor("float32", Float32Array.from({ length: 24 }, () => ++value), [1, 3, 4, 2])),
  ])));
  const filled = contents(cache, 4);
  for (const layers of [1, 2, 3]) {
    left = layers;
    await assert.rejects(cache.grow(12, true), RangeError);
    left = Infinity;
    await cache.grow(5, true);
    assert.deepEqual(contents(cache, 4), filled, `after ${layers} tensors`);
    for (const [name, { dims }] of Object.entries(cache.feeds())) if (name.startsWith("past_key_values.")) assert.equal(dims[2], 8, name);
  }
});
