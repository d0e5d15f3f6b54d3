/** The policy's session: it runs once before each decode step and keeps its state between runs (docs/reference/bundle-details.md section 5). */
import { externalTensors, requireStored } from "../bundle/graph_file.js";
import { UsageError } from "../errors.js";

/** @import {Bundle} from "../bundle/bundle.js" */
/** @import {PolicySpec} from "../bundle/config.js" */
/** @import {PolicyRun} from "../core/core_model.js" */
/** @import {Runtime, Session, Tensor} from "./runtime.js" */

/** Runs a bundle's policy.onnx, on the processor everywhere. */
export class PolicySession {
  /** @type {Tensor} */
  #state;
  /** The run in progress, or the last one. @type {Promise<unknown>} */
  #last = Promise.resolve();

  /**
   * @param {PolicySpec} spec
   * @param {Runtime} runtime
   * @param {Session} session
   */
  constructor(spec, runtime, session) {
    this.spec = spec;
    this.runtime = runtime;
    this.session = session;
    this.#state = this.#zeros();
  }

  /**
   * @param {Bundle} bundle
   * @param {Runtime} runtime
   */
  static async open(bundle, runtime) {
    const { config } = bundle;
    const { policy } = config;
    if (policy === null) {
      throw new UsageError(`schedule sol: ${bundle.name} has no policy; choose another schedule, such as uniform`);
    }
    const graph = await bundle.read(policy.file);
    const path = `${bundle.name}/${policy.file}`;
    for (const tensor of await externalTensors(graph, path)) requireStored(tensor, config, path);
    const externalData = [{ path: config.weights_file, data: await bundle.weights() }];
    const provider = runtime.provider === "cpu" ? "cpu" : "wasm";
    const session = await runtime.session(policy.file, graph, { externalData }, provider);
    return new PolicySession(policy, runtime, session);
  }

  /**
   * Logits over the policy's actions.
   * @param {PolicyRun} run
   */
  async decide({ hidden, token, scalars, previous, step, first }) {
    if (first) this.#state = this.#zeros();
    const { Tensor } = this.runtime.ort;
    const int64 = (/** @type {number} */ value, /** @type {number[]} */ shape) =>
      new Tensor("int64", BigInt64Array.of(BigInt(value)), shape);
    const feeds = {
      hidden_states: new Tensor("float32", hidden, [1, hidden.length]),
      input_ids: int64(token, [1, 1]),
      scalars: new Tensor("float32", scalars, [1, scalars.length]),
      previous_action: int64(previous, [1]),
      step: int64(step, [1]),
      past_state: this.#state,
    };
    const fetches = ["action_logits", "present_state"];
    const run = this.runtime.run(this.spec.file, this.session, feeds, fetches);
    this.#last = run.catch(() => undefined);
    const results = await run;
    this.#state = results.present_state;
    return /** @type {Float32Array} */ (results.action_logits.data);
  }

  /** Frees the session when it no longer runs. */
  async release() {
    await this.#last;
    await this.session.release();
  }

  #zeros() {
    const shape = this.spec.state_shape;
    const data = new Float32Array(shape.reduce((a, b) => a * b, 1));
    return /** @type {Tensor} */ (new this.runtime.ort.Tensor("float32", data, shape));
  }
}
