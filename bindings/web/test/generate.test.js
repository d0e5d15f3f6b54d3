/** The dial while a generation runs, prompts through another variant, and seeds. */
import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";

import { Graphs } from "../src/engine/graphs.js";
import { BundleError, ContextError, SolModel, UsageError } from "../src/index.js";
import { changedBundle, tiny } from "./changed_bundle.js";

const skip = existsSync(tiny) ? false : "runtime_tests/golden is not there";
/** @type {SolModel} */
let model;

before(async () => {
  if (!skip) model = await SolModel.load(tiny, { provider: "wasm" });
});
after(() => model?.close());

/** Tokens under changing budgets; each is set while the step after a token is awaited, or after that step. @param {boolean} during */
async function moved(during) {
  const stream = await model.stream([290], { schedule: "sol", budget: 1, max_new_tokens: 16, eos_token_id: [] });
  const steps = stream[Symbol.asyncIterator]();
  /** @type {Record<number, number>} */
  const budgets = { 3: 0.5, 7: 1, 10: 0.7 };
  const given = [];
  for (let i = 0; i < 16; i++) {
    const next = steps.next();
    if (during && budgets[i] !== undefined) stream.budget = budgets[i];
    given.push((await next).value);
    if (!during && budgets[i] !== undefined) stream.budget = budgets[i];
    if (budgets[i] !== undefined) assert.equal(stream.budget, budgets[i]);
  }
  const { tokens_per_second, time_to_first_token_ms, ...result } = stream.result;
  await stream.close();
  return { steps: given.map(({ ms, ...token }) => token), result };
}

test("a budget that is set while a step runs holds from the next one on", { skip }, async () => {
  const [during, after] = [await moved(true), await moved(false)];
  assert.deepEqual(during, after);
  assert.deepEqual(during.steps.slice(1, 4).map((token) => token.relative_cost), [1, 1, 1]);
  assert.ok(during.steps.slice(4, 8).every((token) => token.relative_cost !== 1), "the policy's run costs something");
});

test("budgets that no generation takes", { skip }, async () => {
  const dial = await model.stream([290], { schedule: "uniform", budget: 0.5 });
  for (const wrong of [-0.1, 1.5, NaN, null, "0.5"]) {
    assert.throws(() => (dial.budget = /** @type {any} */ (wrong)), UsageError);
    assert.equal(dial.budget, 0.5);
  }
  const axes = await model.stream([290], { schedule: "uniform", bits: 6 });
  assert.throws(() => (axes.budget = 0.5), { name: "UsageError", message: /this generation holds targets on the axes/ });
  const fixed = await model.stream([290], { schedule: "dense" });
  assert.throws(() => (fixed.budget = 0.5), { name: "UsageError", message: /schedule dense fixes the action/ });
});

test("a prompt runs through another variant", { skip }, async (t) => {
  /** @type {string[]} */
  const files = [];
  const place = { name: "tiny", read: async (/** @type {string} */ file) => (files.push(file), new Uint8Array(await readFile(join(tiny, file)))) };
  const run = async (/** @type {SolModel} */ own) => {
    const given = [];
    for await (const token of await own.stream([290, 7, 9], { schedule: "dense", max_new_tokens: 3, eos_token_id: [] })) given.push(token);
    return { actions: given.map(({ action }) => action), first: given[0].logprob };
  };
  const plain = await run(model);
  assert.deepEqual(plain.actions, ["k100-s100-q8", "k100-s100-q8", "k100-s100-q8"]);
  for (const prefill of ["s100-q4", "s060-q4"]) {
    files.length = 0;
    const own = await SolModel.load(place, { provider: "wasm", prefill });
    t.after(() => own.close());
    assert.ok(files.includes("model.q4.onnx"), "the prompt's graph is loaded with the model");
    const cheap = await run(own);
    assert.deepEqual(cheap.actions, [`k100-${prefill}`, "k100-s100-q8", "k100-s100-q8"]);
    assert.ok(Math.abs(cheap.first - plain.first) > 1e-4, `${prefill}: ${cheap.first}`);
  }
});

test("a prompt's graph that cannot be loaded leaves no session", { skip }, async (t) => {
  const release = t.mock.method(Graphs.prototype, "release");
  const lacking = {
    name: "tiny",
    async read(/** @type {string} */ file) {
      if (file === "model.q4.onnx") throw new BundleError("tiny", file, "no answer", "a file");
      return new Uint8Array(await readFile(join(tiny, file)));
    },
  };
  await assert.rejects(SolModel.load(lacking, { provider: "wasm", prefill: "s100-q4" }), { name: "BundleError", message: /got no answer/ });
  assert.equal(release.mock.callCount(), 1);
});

test("the policy is the default", { skip }, async (t) => {
  const own = await SolModel.load(tiny, { provider: "wasm" });
  t.after(() => own.close());
  for (const [dial, name] of [[{ budget: 0.8 }, "sol"], [{}, "sol"], [{ bits: 6 }, "uniform"]]) {
    const stream = await own.stream([290], { max_new_tokens: 1, ...dial });
    for await (const _ of stream);
    assert.equal(stream.result.schedule, name);
  }
});

test("a model's own seed leaves the schedule random", { skip }, async (t) => {
  const folder = await mkdtemp(join(tmpdir(), "sol-rt-web-"));
  t.after(() => rm(folder, { recursive: true }));
  const copy = await changedBundle(folder, { "generation_config.json": JSON.stringify({ seed: 7, do_sample: true }) });
  const own = await SolModel.load(copy, { provider: "wasm" });
  t.after(() => own.close());
  const run = async (/** @type {any} */ options) => {
    const given = [];
    for await (const token of await own.stream([290], { max_new_tokens: 40, eos_token_id: [], ...options })) given.push(token);
    return { tokens: given.map(({ token }) => token), actions: given.map(({ action }) => action) };
  };
  const random = { schedule: "random", budget: 0.6 };
  assert.notDeepEqual((await run(random)).actions, (await run(random)).actions);
  assert.deepEqual(await run({ ...random, seed: 7 }), await run({ ...random, seed: 7 }));
  assert.deepEqual(await run({ schedule: "dense" }), await run({ schedule: "dense" })); // sampling still draws from it
});

test("a seed gives the same text after a rewind", { skip }, async () => {
  const settings = { schedule: "dense", do_sample: true, temperature: 1.5, top_k: 0, seed: 11, eos_token_id: [] };
  const run = async (/** @type {number[]} */ prompt, /** @type {number} */ count) =>
    (await model.generate(prompt, { ...settings, max_new_tokens: count, reuse_cache: true })).tokens;
  const whole = await run([290, 14], 30);
  for (const kept of [0, 1, 17]) assert.deepEqual(await run([290, 14, ...whole.slice(0, kept)], 30 - kept), whole.slice(kept));
});

test("a message of more tokens than arguments of a call", { skip }, async () => {
  const messages = [{ role: "user", content: "hello world ".repeat(100_000) }];
  await assert.rejects(model.generate(messages), (/** @type {any} */ error) => {
    assert.ok(error instanceof ContextError, `${error}`);
    assert.match(error.message, /prompt: got \d{6,} tokens, expected at most 768/);
    return true;
  });
});
