/** The golden traces of runtime_tests/golden, and their replay on a model. */
import assert from "node:assert/strict";

/**
 * @typedef {{name: string, prompt: number[], options: Record<string, any>, budgets: Map<number, number>,
 *   tokens: number[], actions: string[], costs: number[], text: string}} Case
 */

const NUMBERS = /^-?\d+(\.\d+)?(e-?\d+)?$/;

/**
 * The cases in the text of `cases.tsv`.
 * @param {string} text
 * @returns {Case[]}
 */
export function parseCases(text) {
  const lines = text.split("\n").filter((line) => line !== "" && !line.startsWith("#"));
  return lines.map((line) => {
    const [name, prompt, given, tokens, actions, costs, expected] = line.split("\t");
    const words = (/** @type {string} */ field) => field.split(" ").filter((word) => word !== "");
    /** @type {Record<string, any>} */
    const options = {};
    for (const [key, value] of words(given).map((pair) => pair.split(/=(.*)/s))) {
      if (key === "do_sample") options[key] = value === "1" || value === "true";
      else if (key === "seed") options[key] = BigInt(value);
      else options[key] = NUMBERS.test(value) ? Number(value) : value;
    }
    const { budget_at: changes = "", ...rest } = options;
    const budgets = new Map(String(changes).split(",").filter(Boolean).map((change) => {
      const [step, budget] = change.split(":").map(Number);
      return [step, budget];
    }));
    return {
      name, options: rest, budgets, prompt: words(prompt).map(Number), tokens: words(tokens).map(Number),
      actions: words(actions), costs: words(costs).map(Number), text: JSON.parse(expected),
    };
  });
}

/**
 * Replays a case and compares tokens, actions, costs and text.
 * @param {import("../src/index.js").SolModel} model
 * @param {Case} golden
 */
export async function replay(model, golden) {
  const { prompt, options, budgets } = golden;
  const stream = await model.stream(prompt, { ...options, reuse_cache: false });
  const given = [];
  for await (const token of stream) {
    given.push(token);
    const budget = budgets.get(given.length); // before the step that follows the token
    if (budget !== undefined) stream.budget = budget;
  }
  const steps = given.slice(1);
  assert.deepEqual(given.map((token) => token.token), golden.tokens);
  assert.deepEqual(steps.map((token) => token.action), golden.actions);
  for (const [i, { relative_cost: cost }] of steps.entries()) {
    assert.ok(Math.abs(cost - golden.costs[i]) <= 1e-9 * golden.costs[i], `step ${i + 1}: cost ${cost}, not ${golden.costs[i]}`);
  }
  assert.equal(stream.result.text, golden.text);
}
