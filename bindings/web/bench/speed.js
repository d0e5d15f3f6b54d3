/**
 * Tokens a second of the page's engine and of transformers.js, in one headless Chromium on wasm, taken in turn.
 *
 *     (cd bench && npm install --ignore-scripts)
 *     python bench/transformers_model.py CHECKPOINT MODELS/NAME
 *     node bench/speed.js WEB_BUNDLE MODELS/NAME [TOKENS [ROUNDS [THREADS [BUNDLE]]]]
 *
 * Each engine has a page of its own that stays open. A round lets each generate once, one after the other. What is
 * reported is the median over the rounds, without the first token, and the lowest and the highest. With BUNDLE, the one that
 * WEB_BUNDLE was made of, its function bodies are timed, too.
 */
import { basename, dirname } from "node:path";
import { loadavg } from "node:os";

import { openBrowser } from "../test/browser.js";

const [bundle, model, tokens = "32", rounds = "3", threads = "1", plain] = process.argv.slice(2);
const PROMPT = "The history of the river begins";
const opened = await openBrowser({ web: bundle, models: dirname(model), plain: plain ?? bundle });
const settings = { prompt: PROMPT, tokens: Number(tokens), threads: Number(threads), name: basename(model) };

async function solPage(/** @type {string} */ schedule, /** @type {"web" | "plain"} */ served = "web") {
  const page = await opened.browser.newPage();
  await page.goto(`${opened.url}/test/blank.html`);
  await page.evaluate(async ([schedule, served, { prompt, tokens, threads }]) => {
    const { SolModel } = await import(/** @type {string} */ ("sol-rt"));
    const model = await SolModel.load(`/bundles/${served}`, { provider: "wasm", threads });
    Object.assign(globalThis, {
      run: async () => {
        const result = await model.generate(prompt, { schedule, max_new_tokens: tokens, eos_token_id: [] });
        return { rate: result.tokens_per_second, text: result.text };
      },
    });
    await /** @type {any} */ (globalThis).run();
  }, /** @type {const} */ ([schedule, served, settings]));
  return page;
}

async function transformersPage(/** @type {string} */ dtype) {
  const page = await opened.browser.newPage();
  await page.goto(`${opened.url}/bench/transformers.html`);
  await page.evaluate(async ([dtype, { prompt, tokens, threads, name }]) => {
    const { TextStreamer, env, pipeline } = await import(/** @type {string} */ ("@huggingface/transformers"));
    Object.assign(env, { allowRemoteModels: false, allowLocalModels: true, localModelPath: "/bundles/models/" });
    env.backends.onnx.wasm.wasmPaths = "/bench/node_modules/onnxruntime-web/dist/";
    env.backends.onnx.wasm.numThreads = threads;
    const generator = await pipeline("text-generation", name, { device: "wasm", dtype });
    Object.assign(globalThis, {
      run: async () => {
        /** @type {number[]} */
        const times = [];
        const streamer = new TextStreamer(generator.tokenizer, {
          skip_prompt: true, callback_function: () => undefined, token_callback_function: () => times.push(performance.now()),
        });
        const options = { max_new_tokens: tokens, min_new_tokens: tokens, do_sample: false, streamer };
        const [{ generated_text: text }] = await generator(prompt, options);
        const own = times.slice(-tokens);
        return { rate: (1000 * (own.length - 1)) / (own[own.length - 1] - own[0]), text };
      },
    });
    await /** @type {any} */ (globalThis).run();
  }, /** @type {const} */ ([dtype, settings]));
  return page;
}

const engines = [
  ["sol_rt dense (8 bits)", () => solPage("dense")],
  ["sol_rt 4 bits", () => solPage("fixed:k100-s100-q4")],
  ["transformers.js fp32", () => transformersPage("fp32")],
  ["transformers.js q8", () => transformersPage("q8")],
  ["transformers.js q4", () => transformersPage("q4")],
  ...(plain === undefined ? [] : [["sol_rt 4 bits, function bodies", () => solPage("fixed:k100-s100-q4", "plain")]]),
];
/** @type {Map<string, {page: import("playwright-core").Page, rates: number[], text: string}>} */
const runs = new Map();
for (const [name, open] of /** @type {[string, () => Promise<import("playwright-core").Page>][]} */ (engines)) {
  try {
    const page = await open();
    runs.set(name, { page, rates: [], text: "" });
    console.error(`${name}: ready`);
  } catch (error) {
    console.error(`${name}: ${String(error).split("\n")[0]}`);
  }
}
for (let round = 0; round < Number(rounds); round++) {
  for (const [name, run] of runs) {
    const { rate, text } = await run.page.evaluate(() => /** @type {any} */ (globalThis).run());
    run.rates.push(rate);
    run.text = text;
    console.error(`${name}: ${rate.toFixed(2)} tokens/s at load ${loadavg()[0].toFixed(1)}`);
  }
}
console.log("| engine | tokens a second | lowest to highest | begins |\n|---|--:|--:|---|");
for (const [name, { rates, text }] of runs) {
  const sorted = rates.toSorted((a, b) => a - b);
  const middle = sorted[sorted.length >> 1].toFixed(2);
  const begins = text.replace(PROMPT, "").trim().slice(0, 40).replaceAll("\n", " ");
  console.log(`| ${name} | ${middle} | ${sorted[0].toFixed(2)} to ${sorted[sorted.length - 1].toFixed(2)} | ${begins} |`);
}
await opened.close();
