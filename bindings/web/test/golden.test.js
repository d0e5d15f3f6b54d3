/** Golden traces in Node: on onnxruntime-web's wasm, and on onnxruntime-node where it is installed. */
import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

import { SolModel } from "../src/index.js";
import { differences, parseCases } from "./golden.js";

const folder = process.env.SOL_RT_GOLDEN ?? fileURLToPath(new URL("../../../runtime_tests/golden", import.meta.url));
const isThere = existsSync(`${folder}/cases.tsv`);
const cases = isThere ? parseCases(readFileSync(`${folder}/cases.tsv`, "utf8")) : [];
const hasNode = await import("onnxruntime-node").then(() => true, () => false);

for (const provider of /** @type {const} */ (["wasm", "cpu"])) {
  const skip = !isThere ? "runtime_tests/golden is not there" : provider === "cpu" && !hasNode && "no onnxruntime-node";
  test(`golden traces on ${provider}`, { skip }, async (t) => {
    const model = await SolModel.load(`${folder}/tiny`, { provider });
    for (const golden of cases) {
      await t.test(golden.name, async () => assert.deepEqual(await differences(model, golden), []));
    }
    await model.close();
  });
}
