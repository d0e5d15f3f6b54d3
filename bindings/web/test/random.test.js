/** Random numbers: published answers of the generator, and those of runtime_tests/helpers/philox_answers.py. */
import assert from "node:assert/strict";
import { test } from "node:test";

import { gumbel } from "../src/generate/gumbel.js";
import { philox, RandomWords, TOKENS } from "../src/philox.js";

// tests/kat_vectors of Random123, the library of the generator's authors
const answers = [
  { counter: [0, 0, 0, 0], key: [0, 0], answer: [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8] },
  {
    counter: [0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff],
    key: [0xffffffff, 0xffffffff],
    answer: [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd],
  },
  {
    counter: [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
    key: [0xa4093822, 0x299f31d0],
    answer: [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
  },
];

/** @type {[number | bigint, number, number, number, number][]} seed, position, token, word, noise */
const examples = [
  [0, 0, 0, 1713891541, 0.08482025111138775],
  [7, 21, 3, 662427915, -0.6255573287407641],
  [1099511627783, 1000, 151935, 151976346, -1.206412124668057],
  [4611686018427387909n, 4, 90, 3852500497, 2.218965495046964],
];

test("known answers of Philox4x32-10", () => {
  for (const { counter, key, answer } of answers) {
    const words = Uint32Array.from(counter);
    philox(words, key[0], key[1]);
    assert.deepEqual([...words], answer);
  }
});

test("the noise of a token, to the last bit", () => {
  for (const [seed, position, token, word, noise] of examples) {
    const random = new RandomWords(seed, TOKENS);
    assert.equal(random.at(position, token), word);
    assert.equal(random.first(position, token + 1)[token], word);
    assert.equal(gumbel(word), noise);
  }
});
