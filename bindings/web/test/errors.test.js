/** Errors, each typed and of one line: damaged bundles, wrong calls, closed models. */
import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { cp, mkdtemp, readFile, readdir, rm, truncate, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";

import { parseConfig } from "../src/bundle/config.js";
import { BundleError, BusyError, ContextError, ProviderError, SolError, SolModel, UsageError } from "../src/index.js";

const root = fileURLToPath(new URL("../../..", import.meta.url));
const tiny = join(root, "runtime_tests/golden/tiny");
const skip = existsSync(tiny) ? false : "runtime_tests/golden is not there";
const corpus = join(root, "runtime_tests/corpus/config");
/** @type {string} */
let folder;
/** @type {SolModel} */
let model;

before(async () => {
  if (skip) return;
  folder = await mkdtemp(join(tmpdir(), "sol-rt-web-"));
  model = await SolModel.load(tiny, { provider: "wasm" });
});
after(async () => {
  await model?.close();
  if (folder) await rm(folder, { recursive: true });
});

/** A copy of the tiny bundle, changed. @param {(copy: string) => Promise<unknown>} change */
async function damaged(change) {
  const copy = await mkdtemp(join(folder, "copy-"));
  await cp(tiny, copy, { recursive: true });
  await change(copy);
  return copy;
}

/** @param {(config: any) => void} change */
async function withConfig(change) {
  return damaged(async (copy) => {
    const config = JSON.parse(await readFile(join(copy, "sol_config.json"), "utf8"));
    change(config);
    await writeFile(join(copy, "sol_config.json"), JSON.stringify(config));
  });
}

/** @param {Promise<unknown>} work @param {Function} kind @param {RegExp} message */
async function refuses(work, kind, message) {
  const error = await work.then(() => assert.fail("nothing was refused"), (error) => error);
  assert.ok(error instanceof kind, `${error?.name}: ${error?.message}`);
  assert.match(error.message, message);
  assert.doesNotMatch(error.message, /[\n\r]/);
  assert.ok(error.message.length <= 1000);
}

/** @param {string} place */
const load = (place) => SolModel.load(place, { provider: "wasm" });

test("no bundle", { skip }, async () => {
  await refuses(load(join(folder, "nothing")), BundleError, /sol_config\.json: got no such file.*sol-rt export/);
});

test("damaged files", { skip }, async () => {
  const cut = await damaged((copy) => truncate(join(copy, "weights.bin"), 4096));
  await refuses(load(cut), BundleError, /weights\.bin: got 4096 bytes, expected \d+ bytes/);
  const flipped = await damaged(async (copy) => {
    const content = await readFile(join(copy, "weights.bin"));
    content[5000] ^= 1;
    await writeFile(join(copy, "weights.bin"), content);
  });
  await refuses(load(flipped), BundleError, /weights\.bin: sha256: got \w{12}…, expected \w{12}…/);
  const tokenizer = await damaged((copy) => rm(join(copy, "tokenizer.json")));
  await refuses(load(tokenizer), BundleError, /tokenizer\.json: got no such file/);
});

test("impossible configs", { skip }, async () => {
  await refuses(load(await withConfig((config) => (config.extra = 1))), BundleError, /extra: got an unknown key, expected one of/);
  await refuses(load(await withConfig((config) => (config.format_version = 2))), BundleError, /format_version: got 2, expected 1; export the bundle again with `sol-rt export -m MODEL`$/);
  const screen = { candidates: 8, tail_offset: 0.5, bits: 3 };
  const screened = await withConfig((config) => {
    for (const key of ["s100-q8", "s060-q8"]) config.variants[key].lm_head_screen = screen;
  });
  await refuses(load(screened), BundleError, /lm_head_screen\.bits: got 3, expected 4; make a copy for browsers/);
  await refuses(load(await withConfig((config) => (config.model.vocab_size += 1))), BundleError, /embed\.scale\.shape: got .* expected \d+ at axis 1, from model\.vocab_size/);
  await refuses(load(await withConfig((config) => (config.weights.file = "../weights.bin"))), BundleError, /weights\.file: .* a plain file name/);
  await refuses(load(await withConfig((config) => (config.kv.dtype = "int8"))), ProviderError, /no operators for a cache in int8; export the bundle with --kv float16/);
});

test("bundles that only other hosts run", () => {
  const parsed = (/** @type {object} */ kv, /** @type {object} */ variant) =>
    parseConfig(JSON.stringify({ kv, variants: { v: variant }, weights: { tensors: {} }, files: {} }), "b/sol_config.json");
  assert.throws(() => parsed({}, { bits: 3 }), { name: "BundleError", message: /variants\.v\.bits: got 3, expected 4, 6, 8 or "mixed"; make a copy for browsers/ });
  const message = /kv\.layers: got layers with a short convolution, expected attention in all layers; run the bundle/;
  assert.throws(() => parsed({ layers: ["conv"] }, { bits: 8 }), { name: "BundleError", message });
});

test("the corpus of damaged configs", { skip: skip || !existsSync(corpus) }, async (t) => {
  for (const name of await readdir(corpus)) {
    await t.test(name, async () => {
      const copy = await damaged((place) => cp(join(corpus, name), join(place, "sol_config.json")));
      await refuses(load(copy), SolError, /: got /); // two have an odd name alone, so the sizes of files differ
    });
  }
});

test("wrong calls", { skip }, async () => {
  /** @param {import("../src/index.js").Prompt} prompt @param {any} [options] */
  const generate = (prompt, options) => model.generate(prompt, options);
  await refuses(generate(""), UsageError, /prompt: got an empty one/);
  await refuses(generate([1, 99999]), UsageError, /got token 99999 at place 1, expected 0 to 383/);
  await refuses(generate("a", { budget: 1.5 }), UsageError, /budget: got 1\.5, expected a share/);
  await refuses(generate("a", { budget: 0.5, max_loss: 0.1 }), UsageError, /budget and max_loss contradict each other/);
  await refuses(generate("a", { schedule: "best" }), UsageError, /schedule: got 'best', expected one of sol, hull/);
  await refuses(generate("a", { schedule: "fixed:k100-s100-q9" }), UsageError, /no variant s100-q9 in this bundle/);
  await refuses(generate("a", { schedule: "dense", budget: 0.5 }), UsageError, /schedule dense: fixes the action/);
  await refuses(generate("a", { bits: 2 }), UsageError, /bits: got 2\.0, expected 4 to 8/);
  await refuses(generate("a", { max_tokens: 5 }), UsageError, /option 'max_tokens': unknown; known: .*max_new_tokens/);
  await refuses(generate("a", { top_p: 2 }), UsageError, /generation setting top_p: got 2\.0, expected a number from 0 to 1/);
  await refuses(generate("a", { tokens_per_second: 9 }), UsageError, /no times are measured in a browser/);
  await refuses(generate(new Array(800).fill(9)), ContextError, /got 800 tokens, expected at most 768/);
  for (const prefill of /** @type {any[]} */ (["s001-q4", "", "k100-s100-q4", 4, ["s100-q4"]])) {
    await refuses(SolModel.load(tiny, { prefill }), UsageError, /prefill: got .*, expected one of the bundle's variants/);
  }
  await refuses(SolModel.load(tiny, { provider: /** @type {any} */ ("cuda") }), ProviderError, /provider cuda: unknown/);
  await refuses(SolModel.load(tiny, { provider: "webgpu" }), ProviderError, /this browser offers no GPU/);
});

test("a loss of a bundle whose losses were not measured", { skip }, async () => {
  const copy = await withConfig((config) => {
    config.policy = null;
    for (const action of config.actions) Object.assign(action, { loss: null, losses: undefined });
  });
  const bare = await load(copy);
  try {
    await refuses(bare.generate("a", { max_loss: 0.1 }), UsageError, /max_loss: no losses of this bundle's actions were measured; leave it out/);
    await refuses(bare.generate("a", { max_loss: 0.1, schedule: "uniform" }), UsageError, /the schedule uniform keeps no loss/);
  } finally {
    await bare.close();
  }
});

test("a newer generation ends an older one, and an abort ends it at once", { skip }, async () => {
  const older = (await model.stream([290], { schedule: "dense" }))[Symbol.asyncIterator]();
  await older.next();
  const result = await model.generate([290], { schedule: "dense", max_new_tokens: 4 });
  assert.equal(result.tokens.length, 4);
  await refuses(older.next(), BusyError, /interrupted by another one/);

  const abort = new AbortController();
  const stream = await model.stream([290], { schedule: "dense", signal: abort.signal });
  const iterator = stream[Symbol.asyncIterator]();
  await iterator.next();
  abort.abort();
  await assert.rejects(iterator.next(), { name: "AbortError" });
  assert.equal(stream.result.tokens.length, 1);
  assert.deepEqual((await model.generate([290], { schedule: "dense", max_new_tokens: 4 })).tokens, result.tokens);
});

test("generations that begin while another one runs", { skip }, async () => {
  const [first, second] = [[44, 261, 290, 300], [290, 7, 9]];
  const options = { schedule: "dense", max_new_tokens: 6 };
  const alone = (await model.generate(second, options)).tokens;
  for (const turns of [0, 1, 2, 3, 5, 8, 13]) {
    const older = model.generate(first, { ...options, max_new_tokens: 60 });
    const interrupted = refuses(older, BusyError, /interrupted by another one/);
    for (let i = 0; i < turns; i++) await new Promise((resolve) => setImmediate(resolve));
    const newer = await model.generate(second, options);
    assert.deepEqual(newer.tokens, alone, `after ${turns} turns`);
    await interrupted;
  }
  const closing = await load(tiny);
  const running = closing.generate(first, options);
  const ended = refuses(running, BusyError, /this model is closed/);
  await closing.close();
  await ended;
});

test("a closed model, and two models at once", { skip }, async () => {
  const [one, other] = await Promise.all([load(tiny), load(tiny)]);
  const options = { schedule: "dense", max_new_tokens: 6 };
  const [a, b] = await Promise.all([one.generate([290], options), other.generate([290], options)]);
  assert.deepEqual(a.tokens, b.tokens);
  const stream = (await one.stream([290], options))[Symbol.asyncIterator]();
  await stream.next();
  await one.close();
  await refuses(stream.next(), BusyError, /interrupted|closed/);
  await refuses(one.generate([290], options), BusyError, /this model is closed/);
  await other.close();
});

test("what ends the load ends nothing later", { skip }, async () => {
  const abort = new AbortController();
  const own = await SolModel.load(tiny, { provider: "wasm", signal: abort.signal });
  abort.abort();
  const answer = await own.generate([290], { budget: 0.4, schedule: "uniform", max_new_tokens: 12, eos_token_id: [] });
  assert.ok(answer.achieved_budget < 0.9, "other graphs than the dense one ran");
  await own.close();
});

test("a file that could not be read once is read again", { skip }, async () => {
  let broken = "";
  const own = await SolModel.load({
    name: "flaky",
    async read(file) {
      if (file === broken) throw new BundleError("flaky", file, "no answer", "a file");
      return new Uint8Array(await readFile(join(tiny, file)));
    },
  }, { provider: "wasm" });
  for (const [file, prompt, options] of /** @type {[string, any, any][]} */ ([
    ["policy.onnx", [290], { schedule: "sol", budget: 0.7, max_new_tokens: 3, eos_token_id: [] }],
    ["chat_template.jinja", [{ role: "user", content: "hello" }], { max_new_tokens: 3 }],
  ])) {
    broken = file;
    await refuses(own.generate(prompt, options), BundleError, /got no answer/);
    broken = "";
    assert.ok((await own.generate(prompt, options)).tokens.length > 0, file);
  }
  await own.close();
});

test("a connection that breaks in the middle of a file", { skip }, async () => {
  const server = createServer(async (request, response) => {
    const file = new URL(request.url ?? "", "http://localhost").pathname.slice(1);
    const content = await readFile(join(tiny, file));
    if (file !== "weights.bin") return response.end(content);
    response.writeHead(200, { "content-length": content.length });
    response.write(content.subarray(0, 4096), () => response.destroy());
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", () => resolve(undefined)));
  const { port } = /** @type {import("node:net").AddressInfo} */ (server.address());
  await refuses(load(`http://127.0.0.1:${port}/`), BundleError, /weights\.bin: got a connection that broke .*, expected a file; check the URL and the network/);
  await new Promise((resolve) => server.close(resolve));
});

test("a model that is closed while its policy runs", { skip }, async () => {
  const options = { schedule: "sol", budget: 0.6, eos_token_id: [] };
  for (const turns of [0, 40]) {
    const own = await load(tiny);
    const stream = (await own.stream([290], options))[Symbol.asyncIterator]();
    await stream.next();
    const ended = refuses(stream.next(), BusyError, /this model is closed|interrupted/);
    for (let i = 0; i < turns; i++) await Promise.resolve();
    await own.close();
    await ended;
  }
});
