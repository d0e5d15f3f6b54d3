/** The golden traces of runtime_tests/golden, and their replay on a model, in Node and in a browser. */

/**
 * @typedef {{name: string, isNative: boolean, prompt: number[], options: Record<string, any>, budgets: Map<number, number>,
 *   tokens: number[], actions: string[], costs: number[], text: string}} Case
 */

const NUMBERS = /^-?\d+(\.\d+)?(e-?\d+)?$/;

/**
 * The cases in the text of `cases.tsv`, without those that only native operators repeat.
 * @param {string} text
 * @returns {Case[]}
 */
export function parseCases(text) {
  const lines = text.split("\n").filter((line) => line !== "" && !line.startsWith("#"));
  const cases = lines.map((line) => {
    const [name, prompt, given, tokens, actions, costs, expected] = line.split("\t");
    const words = (/** @type {string} */ field) => field.split(" ").filter((word) => word !== "");
    /** @type {Record<string, any>} */
    const options = {};
    for (const [key, value] of words(given).map((pair) => pair.split(/=(.*)/s))) {
      if (key === "do_sample") options[key] = value === "1" || value === "true";
      else if (key === "seed") options[key] = BigInt(value);
      else options[key] = NUMBERS.test(value) ? Number(value) : value;
    }
    const { budget_at: changes = "", native = 0, ...rest } = options;
    const budgets = new Map(String(changes).split(",").filter(Boolean).map((change) => {
      const [step, budget] = change.split(":").map(Number);
      return [step, budget];
    }));
    return {
      name, isNative: native === 1, options: rest, budgets, prompt: words(prompt).map(Number), tokens: words(tokens).map(Number),
      actions: words(actions), costs: words(costs).map(Number), text: JSON.parse(expected),
    };
  });
  return cases.filter(({ isNative }) => !isNative);
}

/**
 * Replays a case: how its tokens, actions, costs and text differ from the recorded ones; empty if they do not.
 * @param {import("../src/index.js").SolModel} model
 * @param {Case} golden
 */
export async function differences(model, golden) {
  const { prompt, options, budgets } = golden;
  const stream = await model.stream(prompt, { ...options, reuse_cache: false });
  const given = [];
  for await (const token of stream) {
    given.push(token);
    const budget = budgets.get(given.length); // before the step that follows the token
    if (budget !== undefined) stream.budget = budget;
  }
  const steps = given.slice(1);
  const found = [
    differs("token", given.map((token) => token.token), golden.tokens),
    differs("action of step", steps.map((token) => token.action), golden.actions),
    stream.result.text === golden.text ? "" : `text ${JSON.stringify(stream.result.text)}`,
  ];
  for (const [i, { relative_cost: cost }] of steps.entries()) {
    if (!(Math.abs(cost - golden.costs[i]) <= 1e-9 * golden.costs[i])) found.push(`cost of step ${i}: ${cost}, not ${golden.costs[i]}`);
  }
  return found.filter(Boolean);
}

/**
 * @param {string} what
 * @param {unknown[]} got
 * @param {unknown[]} expected
 */
function differs(what, got, expected) {
  const length = Math.max(got.length, expected.length);
  const at = Array.from({ length }, (_, i) => i).find((i) => got[i] !== expected[i]);
  return at === undefined ? "" : `${what} ${at}: ${got[at]}, not ${expected[at]}`;
}
