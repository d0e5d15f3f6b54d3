/** Chooses ONNX Runtime and its provider, and makes sessions. */
import { ProviderError, SolError, oneLine } from "../errors.js";

/** @typedef {typeof import("onnxruntime-common")} Ort */
/** @typedef {import("onnxruntime-common").InferenceSession} Session */
/** @typedef {import("onnxruntime-common").InferenceSession.SessionOptions} SessionOptions */
/** @typedef {import("onnxruntime-common").Tensor} Tensor */
/** @typedef {"wasm" | "webgpu" | "cpu"} ProviderName */

/**
 * @typedef {object} RuntimeOptions
 * @property {"auto" | ProviderName} [provider] `wasm` or `webgpu` of onnxruntime-web, or `cpu` of onnxruntime-node. By
 *   default WebGPU where the browser has it, else wasm; in Node onnxruntime-node where it is installed, else wasm
 * @property {number} [threads] threads of wasm, which need a cross-origin isolated page; by default ONNX Runtime's choice
 * @property {Ort} [ort] the ONNX Runtime module to use, in place of the installed one
 */

const inNode = typeof process !== "undefined" && process.versions?.node !== undefined && typeof document === "undefined";

/** An ONNX Runtime and the provider on which graphs run. */
export class Runtime {
  /**
   * @param {Ort} ort
   * @param {ProviderName} provider
   * @param {boolean} hasFloat16 whether the GPU computes in float16
   */
  constructor(ort, provider, hasFloat16) {
    this.ort = ort;
    this.provider = provider;
    this.hasFloat16 = hasFloat16;
  }

  /**
   * Throws ProviderError where the provider that was asked for does not work here. `auto` takes a GPU that is one, and
   * that computes in float16 where the bundle's graphs need that.
   * @param {RuntimeOptions & {needsFloat16?: boolean}} options
   */
  static async open({ provider = "auto", threads, ort, needsFloat16 = false } = {}) {
    if (!["auto", "wasm", "webgpu", "cpu"].includes(provider)) {
      throw new ProviderError(`provider ${provider}: unknown, expected auto, wasm, webgpu or cpu`);
    }
    let adapter = provider === "auto" || provider === "webgpu" ? await gpuAdapter() : null;
    if (provider === "webgpu" && adapter === null) {
      throw new ProviderError("provider webgpu: this browser offers no GPU; use provider wasm");
    }
    const isSlow = adapter?.info?.isFallbackAdapter || adapter?.isFallbackAdapter;
    if (provider === "auto" && (isSlow || (needsFloat16 && !adapter?.features.has("shader-f16")))) adapter = null;
    if (adapter !== null) {
      const loaded = ort ?? (await imported("webgpu", () => import("onnxruntime-web/webgpu")));
      return new Runtime(loaded, "webgpu", adapter.features.has("shader-f16"));
    }
    if (provider === "cpu" || (provider === "auto" && inNode)) {
      if (inNode) process.env.ORT_DISABLE_TELEMETRY ??= "1"; // onnxruntime-node of 1.32 and newer writes files and calls home
      try {
        return new Runtime(ort ?? (await imported("cpu", () => import(/** @type {string} */ ("onnxruntime-node")))), "cpu", true);
      } catch (error) {
        if (provider === "cpu") throw error;
      }
    }
    const loaded = ort ?? (await imported("wasm", () => (inNode ? import("onnxruntime-web") : import("onnxruntime-web/wasm"))));
    if (threads !== undefined) loaded.env.wasm.numThreads = threads;
    return new Runtime(loaded, "wasm", true);
  }

  /**
   * A session of a graph. Throws SolError where ONNX Runtime refuses it.
   * @param {string} file name of the graph file, for errors
   * @param {Uint8Array} graph
   * @param {SessionOptions} options all but the provider
   * @param {ProviderName} [provider]
   * @returns {Promise<Session>}
   */
  async session(file, graph, options, provider = this.provider) {
    return inTurn(async () => {
      try {
        const settings = { ...options, executionProviders: [provider], logSeverityLevel: /** @type {3} */ (3) };
        return await this.ort.InferenceSession.create(graph, settings);
      } catch (error) {
        const next = "use a smaller model or fewer bits if memory is short";
        throw new ProviderError(`provider ${provider}: no session for ${file}: ${oneLine(error)}; ${next}`, { cause: error });
      }
    });
  }

  /**
   * Runs a session.
   * @param {string} file name of the graph file, for errors
   * @param {Session} session
   * @param {Record<string, Tensor>} feeds
   * @param {readonly string[]} fetches names of the wanted outputs
   * @returns {Promise<Record<string, Tensor>>}
   */
  async run(file, session, feeds, fetches) {
    return inTurn(async () => {
      try {
        return await session.run(feeds, fetches);
      } catch (error) {
        throw new SolError(`${file}: ONNX Runtime failed: ${oneLine(error)}`, { cause: error });
      }
    });
  }
}

/** The last call of ONNX Runtime: onnxruntime-web takes one at a time, whatever the session. @type {Promise<unknown>} */
let last = Promise.resolve();

/**
 * @template T
 * @param {() => Promise<T>} work
 * @returns {Promise<T>}
 */
function inTurn(work) {
  const turn = last.then(work, work);
  last = turn.catch(() => undefined);
  return turn;
}

/** Lets events come in: ONNX Runtime computes in the thread that calls it, and would keep a page from reacting. */
export function breathe() {
  if (typeof setImmediate === "function") return new Promise((resolve) => setImmediate(resolve));
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve(undefined);
    };
    port2.postMessage(null);
  });
}

/**
 * @returns {Promise<{features: {has(name: string): boolean}, info?: {isFallbackAdapter?: boolean},
 *   isFallbackAdapter?: boolean} | null>}
 */
async function gpuAdapter() {
  const gpu = /** @type {any} */ (globalThis.navigator)?.gpu;
  return gpu === undefined ? null : ((await gpu.requestAdapter().catch(() => null)) ?? null);
}

/**
 * @param {string} provider
 * @param {() => Promise<any>} load
 * @returns {Promise<Ort>}
 */
async function imported(provider, load) {
  try {
    const module = await load();
    return module.InferenceSession === undefined ? module.default : module;
  } catch (error) {
    const name = provider === "cpu" ? "onnxruntime-node" : "onnxruntime-web";
    throw new ProviderError(`provider ${provider}: ${name} cannot be loaded (${oneLine(error)}); run npm install ${name}`);
  }
}
