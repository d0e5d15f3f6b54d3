/** `sol_config.json` (docs/reference/bundle-details.md section 4), which the core checks, and what runs here of it. */
import { BundleError } from "../errors.js";

export { CONFIG_NAME } from "../core/core_model.js";
const WITHOUT_THREE_BITS = "make a copy for browsers with `sol-rt export --target web`, which leaves 3 bits out";

/**
 * @typedef {{name: string, architecture: string, source: string, license: string, vocab_size: number,
 *   hidden_size: number, num_layers: number, num_heads: number, num_kv_heads: number, head_dim: number,
 *   intermediate_size: number, max_context: number, bos_token_id: number | null, eos_token_ids: number[]}} ModelDims
 * @typedef {{dtype: string, page_size: number, sinks: number, capacity_step: number, dense_layers: number[],
 *   windows?: number[], layers?: string[]}} KvLayout
 * @typedef {{file: string, channel_density: number, bits: number | "mixed", weight_bytes: number, lm_head_bits: number,
 *   layer_bits?: number[][], lm_head_screen?: {candidates: number, tail_offset: number, bits: number}}} Variant
 * @typedef {{file: string, horizon: number, scalars: string[], actions: string[], state_shape: number[]}} PolicySpec
 * @typedef {{dtype: string, shape: number[], offset: number, bytes: number}} TensorEntry
 * @typedef {{bytes: number, sha256: string}} FileEntry
 * @typedef {{generator: string, model: ModelDims, kv: KvLayout, dense: string, variants: Map<string, Variant>,
 *   policy: PolicySpec | null, weights_file: string, tensors: Map<string, TensorEntry>, files: Map<string, FileEntry>}} SolConfig
 */

/**
 * Files that a config lists, as far as their entries make sense: before the core has checked the text.
 * @param {string} text
 * @returns {Map<string, FileEntry>}
 */
export function listedFiles(text) {
  let files;
  try {
    files = Object.entries(JSON.parse(text)?.files ?? {});
  } catch {
    return new Map();
  }
  return new Map(files.filter(([, entry]) => Number.isSafeInteger(entry?.bytes) && entry.bytes >= 0 && typeof entry.sha256 === "string"));
}

/**
 * The config in a text that the core has checked. Throws BundleError, which names `path`, for bundles that only the other
 * runtimes run.
 * @param {string} text
 * @param {string} path
 * @returns {SolConfig}
 */
export function parseConfig(text, path) {
  const { generator, model, kv, dense, variants, policy, weights, files } = JSON.parse(text);
  if (kv.layers !== undefined) {
    const hint = "run the bundle in Python or in the native core";
    throw new BundleError(path, "kv.layers", "layers with a short convolution", "attention in all layers", hint);
  }
  for (const [key, { bits, lm_head_screen: screen }] of Object.entries(variants)) {
    if (bits === 3) throw new BundleError(path, `variants.${key}.bits`, 3, '4, 6, 8 or "mixed"', WITHOUT_THREE_BITS);
    if (screen?.bits === 3) throw new BundleError(path, `variants.${key}.lm_head_screen.bits`, 3, 4, WITHOUT_THREE_BITS);
  }
  return {
    generator, model, kv, dense, variants: new Map(Object.entries(variants)), policy, weights_file: weights.file,
    tensors: new Map(Object.entries(weights.tensors)), files: new Map(Object.entries(files)),
  };
}
