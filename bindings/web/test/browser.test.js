/**
 * Golden traces in a real Chromium, on wasm and on WebGPU by software, with a bundle of `sol-rt export --target web`.
 *
 * WebGPU by software takes seconds to compile each graph, so it runs some of the cases; all with SOL_RT_ALL_CASES=1.
 */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

import { missingBrowser, openBrowser } from "./browser.js";
import { parseCases } from "./golden.js";

const root = fileURLToPath(new URL("../../..", import.meta.url));
const golden = join(root, "runtime_tests/golden");
const command = [process.env.SOL_RT ?? "", join(root, ".venv/bin/sol-rt")].find((path) => existsSync(path));
const SOME = [
  "dense-one-token-prompt", "hull-0.8", "live-hull-short", "fixed-other-kv-density", "sampled-top-k",
];

const skip =
  (await missingBrowser()) ||
  (!existsSync(`${golden}/cases.tsv`) && "runtime_tests/golden is not there") ||
  (command === undefined && "no .venv/bin/sol-rt to export the bundle with (make export)");

test("golden traces in Chromium", { skip }, async (t) => {
  const folder = await mkdtemp(join(tmpdir(), "sol-rt-web-"));
  t.after(() => rm(folder, { recursive: true }));
  const densities = ["--channel-density", "1,0.6", "--kv-density", "1,0.5,0.3"];
  const words = ["export", "--target", "web", "-m", join(golden, "tiny"), "-o", join(folder, "web"), ...densities];
  await promisify(execFile)(/** @type {string} */ (command), words, { env: { ...process.env, SOL_RT_HOME: folder } });
  const opened = await openBrowser({ web: join(folder, "web"), tiny: join(golden, "tiny") });
  t.after(() => opened.close());
  const cases = parseCases(await readFile(`${golden}/cases.tsv`, "utf8"));

  for (const [bundle, provider] of [["tiny", "wasm"], ["web", "wasm"], ["web", "webgpu"]]) {
    await t.test(`${bundle} on ${provider}`, async () => {
      const page = await opened.browser.newPage();
      await page.goto(`${opened.url}/test/blank.html`);
      const all = provider === "wasm" || process.env.SOL_RT_ALL_CASES === "1";
      const chosen = all ? cases : cases.filter(({ name }) => SOME.includes(name));
      assert.ok(chosen.length >= SOME.length);
      const found = await page.evaluate(
        async ([bundle, provider, text, names]) => {
          const { SolModel } = await import(/** @type {string} */ ("sol-rt"));
          const { differences, parseCases } = await import(/** @type {string} */ ("/test/golden.js"));
          const model = await SolModel.load(`/bundles/${bundle}`, { provider });
          const found = [];
          for (const golden of parseCases(text)) {
            if (!names.includes(golden.name)) continue;
            for (const difference of await differences(model, golden)) found.push(`${golden.name}: ${difference}`);
          }
          await model.close();
          return found;
        },
        /** @type {const} */ ([bundle, provider, await readFile(`${golden}/cases.tsv`, "utf8"), chosen.map((one) => one.name)]),
      );
      assert.deepEqual(found, []);
      await page.close();
    });
  }

  await t.test("a GPU without float16 refuses a bundle that needs it", async () => {
    const page = await opened.browser.newPage();
    await page.goto(`${opened.url}/test/blank.html`);
    const error = await page.evaluate(async () => {
      const { SolModel } = await import(/** @type {string} */ ("sol-rt"));
      return SolModel.load("/bundles/tiny", { provider: "webgpu" }).then(
        () => "", (/** @type {Error} */ error) => `${error.name}: ${error.message}`,
      );
    });
    assert.match(error, /^ProviderError: provider webgpu: this GPU has no float16 .*--target web/);
  });
});
