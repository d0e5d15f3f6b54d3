/** The core's interface: structs in its memory lie as sol_rt.h says. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

import { STRUCTS } from "../src/core/structs.js";

const header = readFileSync(fileURLToPath(new URL("../../../core/include/sol_rt.h", import.meta.url)), "utf8");

/** The type of a field of wasm, where pointers and sizes have 4 bytes. @param {string} declared */
function typeOf(declared) {
  if (declared.includes("*") || /^sol_(progress|choose|mask)$/.test(declared)) return "ptr";
  if (/^u?int64_t$/.test(declared)) return "i64";
  if (declared === "double") return "f64";
  return /^(uint32_t|size_t)$/.test(declared) ? "u32" : "i32"; // also enums, and a float of as many bytes
}

test("structs have the fields of the header", () => {
  for (const [name, { fields }] of Object.entries(STRUCTS)) {
    const body = new RegExp(`typedef struct ${name} \\{(.*?)\\} ${name};`, "s").exec(header)?.[1];
    assert.ok(body, name);
    const lines = body.replaceAll(/\/\/.*/g, "").split(";").map((line) => line.trim()).filter(Boolean);
    const declared = lines.map((line) => {
      const callback = /^\w+ \(\*(\w+)\)\(/.exec(line);
      if (callback !== null) return [callback[1], "ptr"];
      const [, type, field] = /** @type {RegExpExecArray} */ (/^(.*?)(\w+)$/s.exec(line));
      return [field, typeOf(type.trim())];
    });
    assert.deepEqual([...fields].map(([field, { type }]) => [field, type]), declared, name);
  }
});
