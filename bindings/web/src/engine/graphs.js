/**
 * The sessions of a bundle's graphs, made when they are first needed. A bundle of `sol-rt export --target web` has each
 * graph in forms for wasm and WebGPU, too; in any other one the function bodies run (docs/design/function-bodies.md).
 */
import { FOREIGN, externalTensors, requireStored } from "../bundle/graph_file.js";
import { madeWeight } from "../bundle/made_weights.js";
import { BundleError, ProviderError } from "../errors.js";

/** @import {Bundle} from "../bundle/bundle.js" */
/** @import {Variant} from "../bundle/config.js" */
/** @import {Runtime, Session} from "./runtime.js" */

const MOST_MADE_BYTES = 3e9; // of the 4 GiB that wasm can address

/**
 * A session: the name of its file, and the type of its cache.
 * @typedef {{file: string, session: Session, dtype: "float16" | "float32"}} OpenGraph
 */

/** Sessions by graph and by what they choose. */
export class Graphs {
  /** @type {Map<string, Promise<OpenGraph>>} */
  #opened = new Map();
  #madeBytes = 0;
  /** Graph files that have a session. @type {Set<string>} */
  #files = new Set();
  /** Type of the cache, which all graphs share: that of the first one. @type {"float16" | "float32" | null} */
  #dtype = null;

  /**
   * @param {Bundle} bundle
   * @param {Runtime} runtime
   */
  constructor(bundle, runtime) {
    this.bundle = bundle;
    this.runtime = runtime;
  }

  /**
   * The session of a variant's graph.
   * @param {Variant} variant
   * @param {boolean} choosesTokens whether steps read part of the old tokens
   * @param {boolean} choosesChannels whether channels are inactive
   * @returns {Promise<OpenGraph>}
   */
  open(variant, choosesTokens, choosesChannels) {
    // on the CPU the branches are taken at run time, so one session serves all
    const fixed = this.runtime.provider === "webgpu";
    const key = fixed ? `${variant.file} ${choosesTokens} ${choosesChannels}` : variant.file;
    let opened = this.#opened.get(key);
    if (opened === undefined) {
      const layers = this.bundle.config.model.num_layers;
      const dims = { sparse_kv_layers: choosesTokens ? layers : 0, sparse_channel_layers: choosesChannels ? layers : 0 };
      opened = this.#make(variant, fixed ? { ...dims, ...(choosesTokens ? { S: 1 } : {}) } : {});
      this.#opened.set(key, opened);
      opened.catch(() => this.#opened.delete(key));
    }
    return opened;
  }

  /** Frees all sessions. */
  async release() {
    const opened = [...this.#opened.values()];
    this.#opened.clear();
    for (const graph of opened) await graph.then(({ session }) => session.release(), () => undefined);
  }

  /**
   * @param {Variant} variant
   * @param {Record<string, number>} dims
   * @returns {Promise<OpenGraph>}
   */
  async #make(variant, dims) {
    const { bundle, runtime } = this;
    const { provider } = runtime;
    const own = provider === "cpu" ? variant.file : variant.file.replace(/\.onnx$/, `.${provider}.onnx`);
    const loaded = bundle.has(own) && this.#dtype !== "float16" ? await this.#loaded(own) : null;
    if (loaded === null && this.#dtype === "float32") {
      const next = "use provider webgpu, or export with fewer --bits";
      throw new ProviderError(`provider ${provider}: no memory is left for ${own}; ${next}`);
    }
    const { file, graph, externalData, madeBytes } = loaded ?? /** @type {any} */ (await this.#loaded(variant.file));
    if (provider === "webgpu" && file === variant.file && !runtime.hasFloat16) {
      const next = "export the bundle with --target web, or use provider wasm";
      throw new ProviderError(`provider webgpu: this GPU has no float16 (shader-f16), which ${file} needs; ${next}`);
    }
    const level = variant.layer_bits === undefined ? variant.bits : Math.max(...variant.layer_bits.flat());
    const session = {
      // quantizing activations to 8 bits would lose more than weights of 8 bits do
      qdq_matmulnbits_accuracy_level: level === 8 ? "1" : "4",
      ...(provider === "webgpu" ? { enable_dq_matmulnbits_fusion: "1" } : {}),
    };
    const options = { externalData, freeDimensionOverrides: dims, extra: { session } };
    const location = provider === "webgpu" ? { preferredOutputLocation: this.#onGpu() } : {};
    const made = await runtime.session(file, graph, { ...options, ...location });
    this.#madeBytes += madeBytes;
    this.#files.add(variant.file);
    const all = new Set([...bundle.config.variants.values()].map((each) => each.file));
    if (this.#files.size === all.size && bundle.config.policy === null) bundle.forgetWeights(); // nobody needs them again
    this.#dtype = file === variant.file ? "float16" : "float32";
    return { file, session: made, dtype: this.#dtype };
  }

  /**
   * A graph file and the weights that it reads; null if what has to be made of them is too large.
   * @param {string} file
   */
  async #loaded(file) {
    const { bundle } = this;
    const { config } = bundle;
    const path = `${bundle.name}/${file}`;
    const graph = await bundle.read(file);
    const external = await externalTensors(graph, path);
    const made = external.filter((tensor) => madeWeight(tensor.location) !== null);
    const madeBytes = made.reduce((sum, tensor) => sum + tensor.length, 0);
    if (this.#madeBytes + madeBytes > MOST_MADE_BYTES) return null;
    const weights = await bundle.weights();
    const tensor = (/** @type {string} */ name) => {
      const entry = config.tensors.get(name);
      if (entry === undefined) throw new BundleError(path, name, "no such tensor", `a tensor of ${config.weights_file}`);
      return { entry, bytes: weights.subarray(entry.offset, entry.offset + entry.bytes) };
    };
    const externalData = [{ path: config.weights_file, data: weights }];
    for (const found of external) {
      const make = madeWeight(found.location);
      if (make === null) {
        requireStored(found, config, path);
        continue;
      }
      const { buffer } = make(tensor);
      if (buffer.byteLength !== found.length) {
        throw new BundleError(path, found.name, `${found.length} bytes`, `${buffer.byteLength} bytes`, FOREIGN);
      }
      externalData.push({ path: found.location, data: new Uint8Array(buffer) });
    }
    return { file, graph, externalData, madeBytes };
  }

  #onGpu() {
    /** @type {Record<string, "gpu-buffer">} */
    const places = {};
    for (let layer = 0; layer < this.bundle.config.model.num_layers; layer++) {
      for (const part of ["key", "value"]) places[`present.${layer}.${part}`] = "gpu-buffer";
    }
    return places;
  }
}
