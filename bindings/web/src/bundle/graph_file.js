/** Reads from a graph file's protobuf which weights the graph keeps outside of it. */
import { BundleError } from "../errors.js";

/** @type {Record<number, string>} */
const DTYPES = { 1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 10: "float16", 21: "uint4" };
const EXTERNAL = 1;

/**
 * A weight outside the graph file.
 * @typedef {{name: string, dtype: string, shape: number[], location: string, offset: number, length: number}} ExternalTensor
 */

/**
 * Lists every initializer of a graph file whose data is external. Throws BundleError if it is no ONNX model.
 * @param {Uint8Array} model
 * @param {string} path
 */
export function externalTensors(model, path) {
  try {
    const graph = [...fields(model)].find(([number]) => number === 7)?.[1];
    if (!(graph instanceof Uint8Array)) throw new RangeError("no graph");
    const initializers = [...fields(graph)].filter(([number]) => number === 5);
    return initializers.flatMap(([, message]) => (message instanceof Uint8Array ? tensor(message) : []));
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    throw new BundleError(path, "", "bytes that are not an ONNX model", "an ONNX graph");
  }
}

/**
 * @param {Uint8Array} message
 * @returns {ExternalTensor[]}
 */
function tensor(message) {
  const text = new TextDecoder();
  let [name, dtype, external] = ["", "", false];
  /** @type {number[]} */
  const shape = [];
  /** @type {Record<string, string>} */
  const entries = {};
  for (const [number, value] of fields(message)) {
    if (number === 1) shape.push(...(typeof value === "number" ? [value] : packed(value)));
    else if (number === 2) dtype = DTYPES[/** @type {number} */ (value)] ?? `ONNX type ${value}`;
    else if (number === 8 && value instanceof Uint8Array) name = text.decode(value);
    else if (number === 14) external = value === EXTERNAL;
    else if (number === 13 && value instanceof Uint8Array) {
      const pair = [...fields(value)].map(([key, part]) => [key, part instanceof Uint8Array ? text.decode(part) : ""]);
      const found = Object.fromEntries(pair);
      entries[found[1] ?? ""] = found[2] ?? "";
    }
  }
  if (!external) return [];
  const { location = "", offset = "0", length = "-1" } = entries;
  return [{ name, dtype, shape, location, offset: Number(offset), length: Number(length) }];
}

/**
 * The fields of a protobuf message: numbers, and length-delimited ones as bytes. Fields of 4 and 8 bytes are left out.
 * @param {Uint8Array} message
 * @returns {Generator<[number, number | Uint8Array]>}
 */
function* fields(message) {
  const reader = new Reader(message);
  while (reader.at < message.length) {
    const tag = reader.varint();
    const kind = tag % 8;
    const number = Math.floor(tag / 8);
    if (kind === 0) yield [number, reader.varint()];
    else if (kind === 2) yield [number, reader.bytes(reader.varint())];
    else if (kind === 1 || kind === 5) reader.bytes(kind === 1 ? 8 : 4);
    else throw new RangeError(`wire type ${kind}`);
  }
}

/** @param {Uint8Array} chunk */
function packed(chunk) {
  const reader = new Reader(chunk);
  const values = [];
  while (reader.at < chunk.length) values.push(reader.varint());
  return values;
}

class Reader {
  at = 0;

  /** @param {Uint8Array} content */
  constructor(content) {
    this.content = content;
  }

  varint() {
    let [value, scale] = [0, 1];
    for (;;) {
      if (this.at >= this.content.length || scale > 2 ** 63) throw new RangeError("a damaged number");
      const byte = this.content[this.at++];
      value += (byte & 0x7f) * scale;
      if (byte < 0x80) return value;
      scale *= 128;
    }
  }

  /** @param {number} size */
  bytes(size) {
    if (this.at + size > this.content.length) throw new RangeError("a field runs past the end");
    return this.content.subarray(this.at, (this.at += size));
  }
}
