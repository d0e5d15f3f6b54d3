/** The weights that a graph file keeps outside of it: onnxruntime-web does not report them. The core reads the file. */
import { openCore } from "../core/core.js";
import { BundleError } from "../errors.js";

/** @import {SolConfig} from "./config.js" */

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
 * @returns {Promise<ExternalTensor[]>}
 */
export async function externalTensors(model, path) {
  const core = await openCore();
  return core.borrow((memory) => {
    const [graph, name] = [memory.put(model), memory.string(path)];
    const json = memory.filled(Uint8Array, (...room) => core.call("sol_graph_weights", graph, model.byteLength, name, ...room));
    return JSON.parse(new TextDecoder().decode(json));
  });
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
