/**
 * Reads from a graph file's protobuf which weights the graph keeps outside of it.
 *
 * The fields that are read: ModelProto.graph = 7 and functions = 25, GraphProto.node = 1 and initializer = 5,
 * FunctionProto.node = 7, of NodeProto output = 2, op_type = 4 and attribute = 5, of AttributeProto name = 1, i = 3, g = 6
 * and graphs = 11, and of TensorProto dims = 1, data_type = 2, name = 8, external_data = 13, data_location = 14.
 */
import { BundleError } from "../errors.js";

/** @import {SolConfig} from "./config.js" */

/** @type {Record<number, string>} */
const DTYPES = { 1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 10: "float16", 21: "uint4" };
const EXTERNAL = 1;
const DEEPEST = 40; // graphs in graphs; ONNX Runtime reads about 33, because protobuf reads 100 messages in messages
export const FOREIGN = "the graph belongs to another bundle: export again";

/**
 * A weight outside the graph file.
 * @typedef {{name: string, dtype: string, shape: number[], location: string, offset: number, length: number}} ExternalTensor
 */

/**
 * Lists every initializer of a graph file whose data is external. Throws BundleError if it is no ONNX model, or one that
 * ONNX Runtime cannot bear.
 * @param {Uint8Array} model
 * @param {string} path
 */
export function externalTensors(model, path) {
  try {
    const graphs = messages(model, 7);
    if (graphs.length === 0) throw new RangeError("no graph");
    const graph = graphs.length === 1 ? graphs[0] : joined(graphs);
    checkNodes(messages(graph, 1), 0);
    for (const body of messages(model, 25)) checkNodes(messages(body, 7), 0);
    return messages(graph, 5).flatMap(tensor);
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    throw new BundleError(path, "", "bytes that are not an ONNX model", "an ONNX graph");
  }
}

/**
 * Throws BundleError if a weight outside a graph file is not a tensor of the weights file.
 * @param {ExternalTensor} tensor
 * @param {SolConfig} config
 * @param {string} path of the graph file
 */
export function requireStored(tensor, config, path) {
  const entry = tensor.location === config.weights_file ? config.tensors.get(tensor.name) : undefined;
  if (entry === undefined) {
    throw new BundleError(path, tensor.name, `a weight in '${tensor.location}'`, `a tensor of ${config.weights_file}`, FOREIGN);
  }
  const [asked, stored] = [tensor, { ...entry, length: entry.bytes }].map(describe);
  if (asked !== stored) throw new BundleError(path, tensor.name, asked, stored, FOREIGN);
}

/** @param {{dtype: string, shape: number[], offset: number, length: number}} tensor */
function describe({ dtype, shape, offset, length }) {
  return `${dtype} [${shape.join(", ")}] at ${offset}, ${length} bytes`;
}

/**
 * Throws RangeError for a node that ONNX Runtime cannot bear, also in the subgraphs of nodes such as If.
 * @param {Uint8Array[]} nodes
 * @param {number} depth
 */
function checkNodes(nodes, depth) {
  if (depth > DEEPEST) throw new RangeError("too many graphs in graphs");
  for (const node of nodes) {
    const parts = [...fields(node)];
    if (parts.some(([number, value]) => number === 4 && isText(value, "Split"))) checkSplit(parts);
    for (const attribute of messages(node, 5)) {
      for (const number of [6, 11]) for (const graph of messages(attribute, number)) checkNodes(messages(graph, 1), depth + 1);
    }
  }
}

/**
 * Throws RangeError if the `num_outputs` of a Split is not that of its outputs: while it infers their shapes, ONNX Runtime
 * then ends the process, or on wasm reads what lies after them.
 * @param {[number, number | Uint8Array][]} node its fields
 */
function checkSplit(node) {
  const outputs = node.filter(([number]) => number === 2).length;
  for (const [number, attribute] of node) {
    if (number !== 5 || !(attribute instanceof Uint8Array)) continue;
    const parts = [...fields(attribute)];
    const named = parts.some(([field, value]) => field === 1 && isText(value, "num_outputs"));
    const values = parts.filter(([field]) => field === 3);
    if (named && values[values.length - 1]?.[1] !== outputs) throw new RangeError("a Split with another num_outputs");
  }
}

/**
 * @param {number | Uint8Array} value
 * @param {string} text
 */
function isText(value, text) {
  return value instanceof Uint8Array && new TextDecoder().decode(value) === text;
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
 * All values of a length-delimited field.
 * @param {Uint8Array} message
 * @param {number} wanted
 * @returns {Uint8Array[]}
 */
function messages(message, wanted) {
  return [...fields(message)].flatMap(([number, value]) => (number === wanted && value instanceof Uint8Array ? [value] : []));
}

/**
 * One message of several: where a field occurs several times, protobuf reads its values as one.
 * @param {Uint8Array[]} parts
 */
function joined(parts) {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
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
    if (tag >= 2 ** 32) throw new RangeError("a field number of more than 29 bits"); // protobuf would take the lower bits
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
