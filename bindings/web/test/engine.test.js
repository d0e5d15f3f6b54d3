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

test("graph files of the corpus", { skip: !existsSync(corpus) }, async () => {
  const read = ["weight-elsewhere.onnx", "weight-of-a-long-name.onnx", "weight-of-control-characters.onnx"];
  for (const name of await readdir(join(corpus, "graph"))) {
    const content = await readFile(join(corpus, "graph", name));
    if (name.startsWith("offset-")) continue; // its number is compared with the config's, as any other
    if (read.includes(name)) assert.equal((await externalTensors(content, name)).length, 1, name);
    else await assert.rejects(externalTensors(content, name), { name: "BundleError", message: /bytes that are not an ONNX model/ }, name);
  }
});

test("a Split that ONNX Runtime cannot bear", async () => {
  const outputs = joined(field(2, "a"), field(2, "b"));
  const name = field(1, "num_outputs");
  /** @param {Uint8Array[]} attribute */
  const split = (...attribute) => field(1, joined(outputs, field(4, "Split"), field(5, joined(...attribute))));
  const empty = field(7, field(2, "g"));
  const bad = split(name, field(3, 1));
  const other = bad.subarray(1); // the node without its tag
  const nested = (/** @type {number} */ depth, /** @type {number} */ number) => {
    let graph = bad;
    for (let i = 0; i < depth; i++) graph = field(1, field(5, joined(field(number, ""), field(number, graph))));
    return field(7, graph);
  };
  /** @type {Record<string, Uint8Array>} */
  const refused = {
    plain: field(7, bad),
    "in a function": joined(empty, field(25, joined(Buffer.from([7 * 8 + 2]), other))),
    "in a second graph": joined(empty, field(7, bad)),
    "without a value": field(7, split(name)),
    "with bytes as the value": field(7, split(name, field(3, "x"))),
    "with another value in a field of 4 bytes": field(7, split(name, field(3, 1), Buffer.from([3 * 8 + 5, 2, 0, 0, 0]))),
    "with a number in the field of the name": field(7, split(name, field(1, 0), field(3, 1))),
    "behind a field number of more than 29 bits": joined(empty, Buffer.from([0xba, 0x80, 0x80, 0x80, 0x10]), field(7, bad).subarray(1)),
  };
  for (const depth of [1, 5, 200]) for (const number of [6, 11]) refused[`in ${depth} graphs of field ${number}`] = nested(depth, number);
  for (const [what, model] of Object.entries(refused)) {
    await assert.rejects(externalTensors(model, "a.onnx"), { name: "BundleError", message: /bytes that are not an ONNX model/ }, what);
  }
  assert.deepEqual(await externalTensors(field(7, split(name, field(3, 2))), "a.onnx"), []);
  assert.deepEqual(await externalTensors(empty, "a.onnx"), []);
});

test("a bundle with a graph or a policy that ONNX Runtime cannot bear", { skip }, async () => {
  const graph = await readFile(join(corpus, "graph/abort-split.onnx"));
  const policy = await readFile(join(corpus, "policy_graph/abort-split.onnx"));
  const refusal = { name: "BundleError", message: /bytes that are not an ONNX model/ };
  await assert.rejects(SolModel.load(await changedBundle(folder, { "model.q8.onnx": graph }), { provider: "wasm" }), refusal);
  const model = await SolModel.load(await changedBundle(folder, { "policy.onnx": policy }), { provider: "wasm" });
  await assert.rejects(model.generate([290], { schedule: "sol", budget: 0.7, max_new_tokens: 3, eos_token_id: [] }), refusal);
  await model.close();
});

test("telemetry of onnxruntime-node is off, unless it is asked for", async () => {
  const kept = process.env.ORT_DISABLE_TELEMETRY;
  try {
    for (const [given, expected] of [[undefined, "1"], ["0", "0"]]) {
      delete process.env.ORT_DISABLE_TELEMETRY;
      if (given !== undefined) process.env.ORT_DISABLE_TELEMETRY = given;
      await Runtime.open();
      assert.equal(process.env.ORT_DISABLE_TELEMETRY, expected);
    }
  } finally {
    delete process.env.ORT_DISABLE_TELEMETRY;
    if (kept !== undefined) process.env.ORT_DISABLE_TELEMETRY = kept;
  }
});

test("weights that could not be made take no memory", { skip }, async () => {
  const entry = (/** @type {string} */ key, /** @type {string} */ value) => field(13, joined(field(1, key), field(2, value)));
  const place = [entry("location", "layers.0.up.8.float32"), entry("length", "2000000000")];
  const weight = field(5, joined(field(2, 1), field(8, "w"), ...place, field(14, 1)));
  const bundle = await Bundle.open(await changedBundle(folder, { "model.q8.wasm.onnx": field(7, weight) }));
  bundle.readConfig();
  const graphs = new Graphs(bundle, await Runtime.open({ provider: "wasm" }));
  const variant = /** @type {any} */ (bundle.config.variants.get("s100-q8"));
  for (let i = 0; i < 3; i++) {
    await assert.rejects(graphs.open(variant, false, false), (/** @type {any} */ error) => {
      assert.ok(error instanceof BundleError, `${error}`);
      assert.match(error.message, /got 2000000000 bytes, expected \d+ bytes/);
      return true;
    });
  }
});
