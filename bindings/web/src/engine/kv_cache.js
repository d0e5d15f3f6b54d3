/**
 * The KV cache that all variants of a bundle share. A run gives its successor, which is taken over once it is good.
 *
 * On a processor a run copies the whole cache in and out, so the cache is as long as its content: GroupQueryAttention
 * appends to it. Steps that choose tokens, and GPUs, have room in it instead, in steps of the capacity.
 */

/** @import {KvLayout, ModelDims} from "../bundle/config.js" */
/** @import {Ort, Tensor} from "./runtime.js" */

/** Keys and values of all layers: tensors [1, kv_heads, capacity, head_dim] by the graph's input names. */
export class KvCache {
  /** Tokens that there is room for. */
  capacity = 0;
  /** @type {Map<string, Tensor>} */
  #tensors = new Map();
  /** @type {Record<string, Tensor>} */
  #unread = {};

  /**
   * @param {Ort} ort
   * @param {ModelDims} model
   * @param {KvLayout} layout
   * @param {"float16" | "float32"} dtype
   * @param {boolean} hasRoom whether the cache is longer than its content
   */
  constructor(ort, model, layout, dtype, hasRoom) {
    this.ort = ort;
    this.model = model;
    this.layout = layout;
    this.dtype = dtype;
    this.hasRoom = hasRoom;
    /** Names of the outputs that a run has to give. */
    this.outputs = this.#names().map(([, present]) => present);
    const { num_kv_heads: heads, head_dim: size, num_layers: layers } = model;
    const page = layout.page_size;
    // function bodies pass key codes on unread, so one page of them will do
    for (let layer = 0; layer < layers; layer++) {
      const codes = new Uint8Array((heads * page * size) / 2);
      this.#unread[`past_key_codes.${layer}`] = new ort.Tensor("uint8", codes, [1, heads, page, size / 2]);
      this.#unread[`past_key_range.${layer}`] = this.#zeros([1, heads, page, 2]);
    }
    for (const [past] of this.#names()) this.#tensors.set(past, this.#zeros([1, heads, 0, size]));
  }

  /** The cache as inputs of a run. */
  feeds() {
    return { ...Object.fromEntries(this.#tensors), ...this.#unread };
  }

  /**
   * Takes the outputs of a run over.
   * @param {Record<string, Tensor>} results
   */
  adopt(results) {
    for (const [past, present] of this.#names()) {
      const old = this.#tensors.get(past);
      this.#tensors.set(past, results[present]);
      this.capacity = results[present].dims[2];
      if (old !== undefined && old.location === "gpu-buffer") old.dispose();
    }
  }

  /**
   * Makes room for `tokens` tokens where the cache has room. The content stays.
   * @param {number} tokens
   * @param {boolean} needsRoom whether a step needs room from now on
   */
  async grow(tokens, needsRoom) {
    this.hasRoom ||= needsRoom;
    const step = this.layout.capacity_step;
    const capacity = Math.ceil(tokens / step) * step;
    if (!this.hasRoom || (tokens <= this.capacity && this.capacity % step === 0)) return;
    const { num_kv_heads: heads, head_dim: size } = this.model;
    this.capacity = 0; // where memory runs out, layers differ, and the next call has to bring all of them to its capacity
    for (const [past] of this.#names()) {
      const grown = this.#zeros([1, heads, capacity, size]);
      const old = this.#tensors.get(past);
      if (old !== undefined) {
        const content = /** @type {any} */ (await old.getData(true));
        const [from, to] = [old.dims[2] * size, capacity * size];
        const kept = Math.min(from, to);
        const target = /** @type {any} */ (grown.data);
        for (let head = 0; head < heads; head++) target.set(content.subarray(head * from, head * from + kept), head * to);
      }
      this.#tensors.set(past, grown);
    }
    this.capacity = capacity;
  }

  /** Frees what lies on a GPU. */
  release() {
    for (const tensor of this.#tensors.values()) if (tensor.location === "gpu-buffer") tensor.dispose();
    this.#tensors.clear();
    this.capacity = 0;
  }

  /** @returns {[string, string][]} names of every input and the output that follows it */
  #names() {
    return Array.from({ length: this.model.num_layers }, (_, layer) => layer).flatMap((layer) =>
      ["key", "value"].map((part) => /** @type {[string, string]} */ ([
        `past_key_values.${layer}.${part}`, `present.${layer}.${part}`,
      ])),
    );
  }

  /** @param {number[]} shape */
  #zeros(shape) {
    const size = shape.reduce((a, b) => a * b, 1);
    const data = this.dtype === "float32" ? new Float32Array(size) : new Uint16Array(size);
    return /** @type {Tensor} */ (new this.ort.Tensor(this.dtype, /** @type {any} */ (data), shape));
  }
}
