/**
 * Reads `sol_config.json` strictly: unknown, missing and impossible values are errors (docs/reference/bundle-details.md section 4).
 * Every fault is a BundleError with the file, the key, what was found and what was expected.
 */
import { Action, MIXED } from "../budget/actions.js";
import { KNOWN_SCALARS } from "../budget/policy_inputs.js";
import { BundleError, UsageError, brief } from "../errors.js";

export const CONFIG_NAME = "sol_config.json";
export const BLOCK = 32;
const FORMAT = "sol_rt.bundle";
const FORMAT_VERSION = 1;
const THREE_BITS = 3;
const WITHOUT_THREE_BITS = "make a copy for browsers with `sol-rt export --target web`, which leaves 3 bits out";
const PAGE_SIZE = 4;
const ALIGNMENT = 4096;
const LARGEST = 2 ** 48;
/** @type {Record<string, number>} */
export const DTYPE_BITS = { float32: 32, float16: 16, int64: 64, int32: 32, int8: 8, uint8: 8, uint4: 4 };
const FILE_NAME = /^[A-Za-z0-9][A-Za-z0-9._+-]*$/;

/**
 * @typedef {{name: string, architecture: string, source: string, license: string, vocab_size: number,
 *   hidden_size: number, num_layers: number, num_heads: number, num_kv_heads: number, head_dim: number,
 *   intermediate_size: number, max_context: number, bos_token_id: number | null, eos_token_ids: number[]}} ModelDims
 * @typedef {{dtype: string, page_size: number, sinks: number, capacity_step: number, dense_layers: number[],
 *   windows: number[]}} KvLayout
 * @typedef {{key: string, file: string, channel_density: number, bits: number, active_up: number[],
 *   active_down: number[], active_qkv: number[], active_o: number[], weight_bytes: number, lm_head_bits: number,
 *   layer_bits: number[][] | null, lm_head_screen: Screen | null}} Variant
 * @typedef {{candidates: number, tail_offset: number}} Screen
 * @typedef {{action: Action, loss: number | null, losses: Map<number, number>}} ActionEntry
 * @typedef {{file: string, horizon: number, scalars: string[], actions: Action[], state_shape: number[],
 *   description: string, gain_over_hull: number, gain_budgets: number[]}} PolicySpec
 * @typedef {{dtype: string, shape: number[], offset: number, bytes: number}} TensorEntry
 * @typedef {{bytes: number, sha256: string}} FileEntry
 * @typedef {{generator: string, model: ModelDims, kv: KvLayout, dense: Action, variants: Map<string, Variant>,
 *   actions: ActionEntry[], policy: PolicySpec | null, weights_file: string, tensors: Map<string, TensorEntry>,
 *   files: Map<string, FileEntry>}} SolConfig
 */

/**
 * Number of input channels of a layer's matrices, by the name of the variant's field that counts active ones.
 * @param {ModelDims} model
 */
export function channels(model) {
  return {
    active_up: model.hidden_size,
    active_down: model.intermediate_size,
    active_qkv: model.hidden_size,
    active_o: model.num_heads * model.head_dim,
  };
}

/**
 * The config in the text of a file. Errors name `path`.
 * @param {string} text
 * @param {string} path
 * @returns {SolConfig}
 */
export function parseConfig(text, path) {
  let raw;
  try {
    raw = JSON.parse(text);
  } catch {
    throw new BundleError(path, "", "text that is not JSON", "UTF-8 JSON", "point at a folder that sol-rt export wrote");
  }
  return readConfig(new Table(path, "", raw));
}

/** A JSON object that is being checked. Every getter throws an error that names its key. */
class Table {
  /**
   * @param {string} path
   * @param {string} where
   * @param {unknown} raw
   */
  constructor(path, where, raw) {
    if (raw === null || typeof raw !== "object" || Array.isArray(raw)) {
      throw new BundleError(path, where || "top level", short(raw), "a JSON object");
    }
    this.path = path;
    this.where = where;
    this.raw = /** @type {Record<string, unknown>} */ (raw);
    /** @type {Set<string>} */
    this.asked = new Set();
  }

  /** @param {string} name */
  key(name) {
    return this.where ? `${this.where}.${name}` : name;
  }

  /**
   * @param {string} name
   * @param {unknown} got
   * @param {unknown} expected
   * @param {string} [hint]
   */
  fail(name, got, expected, hint) {
    return new BundleError(this.path, this.key(name), got, expected, hint);
  }

  /** @param {string} name */
  has(name) {
    return Object.hasOwn(this.raw, name);
  }

  /** @param {string} name */
  value(name) {
    this.asked.add(name);
    if (!this.has(name)) throw this.fail(name, "no such key", "a value");
    return this.raw[name];
  }

  /**
   * @param {string} name
   * @param {(value: any) => boolean} test
   * @param {string} expected
   * @returns {any}
   */
  typed(name, test, expected) {
    const value = this.value(name);
    if (!test(value)) throw this.fail(name, short(value), expected);
    return value;
  }

  /**
   * @param {string} name
   * @returns {string}
   */
  text(name) {
    return this.typed(name, (v) => typeof v === "string", "a string");
  }

  /**
   * @param {string} name
   * @param {string[]} allowed
   * @returns {string}
   */
  choice(name, allowed) {
    return this.typed(name, (v) => allowed.includes(v), allowed.toSorted().join(" or "));
  }

  /**
   * @param {string} name
   * @param {number} [low]
   * @param {number} [high]
   * @returns {number}
   */
  integer(name, low = 1, high = LARGEST) {
    return this.typed(name, (v) => isInt(v, low, high), `an integer from ${low} to ${high}`);
  }

  /**
   * @param {string} name
   * @param {number} [low]
   * @param {number} [high]
   * @returns {number[]}
   */
  integers(name, low = 1, high = LARGEST) {
    const test = (/** @type {any} */ v) => Array.isArray(v) && v.every((item) => isInt(item, low, high));
    return this.typed(name, test, `a list of integers from ${low} to ${high}`);
  }

  /**
   * @param {string} name
   * @returns {string[]}
   */
  texts(name) {
    const test = (/** @type {any} */ v) => Array.isArray(v) && v.every((item) => typeof item === "string");
    return this.typed(name, test, "a list of strings");
  }

  /**
   * @param {string} name
   * @returns {string}
   */
  fileName(name) {
    return this.typed(name, isFileName, "a plain file name inside the bundle");
  }

  /** @param {string} name */
  table(name) {
    return new Table(this.path, this.key(name), this.value(name));
  }

  /** @returns {[string, Table][]} */
  tables() {
    return Object.keys(this.raw).map((name) => [name, this.table(name)]);
  }

  done() {
    for (const name of Object.keys(this.raw)) {
      if (this.asked.has(name)) continue;
      const hint = "correct the key, or use a newer sol_rt if a newer one wrote the bundle";
      throw this.fail(name, "an unknown key", `one of ${[...this.asked].toSorted().join(", ")}`, hint);
    }
  }
}

/** @param {unknown} value */
function short(value) {
  const text = JSON.stringify(value) ?? "nothing";
  return text.length <= 80 ? text : `${text.slice(0, 79)}…`;
}

/**
 * @param {unknown} value
 * @param {number} low
 * @param {number} high
 */
function isInt(value, low, high) {
  return typeof value === "number" && Number.isInteger(value) && value >= low && value <= high;
}

/** @param {unknown} name */
function isFileName(name) {
  return typeof name === "string" && FILE_NAME.test(name) && name !== CONFIG_NAME && name.length < 200;
}

/** @param {unknown} value */
function isLoss(value) {
  return value === null || (typeof value === "number" && Math.abs(value) < 1e6);
}

/** @param {any} value */
function isRange(value) {
  if (!Array.isArray(value) || value.length !== 2 || value.some((v) => typeof v !== "number")) return false;
  return value[0] >= 0 && value[0] <= value[1] && value[1] <= 1;
}

/**
 * The action that runs prompts through the variant of this key; without a key the dense action. Throws UsageError if
 * the bundle has no such variant.
 * @param {SolConfig} config
 * @param {unknown} key
 */
export function prefillAction({ dense, variants }, key) {
  if (key === undefined || key === null) return dense;
  if (typeof key !== "string" || !variants.has(key)) {
    const has = [...variants.keys()].join(", ");
    throw new UsageError(`prefill: got ${brief(key)}, expected one of the bundle's variants: ${has}`);
  }
  return Action.parse(`k100-${key}`);
}

/**
 * @param {Table} table
 * @param {string} name
 * @param {unknown} tag
 * @param {Map<string, Variant>} variants
 */
function readAction(table, name, tag, variants) {
  let action;
  try {
    action = Action.parse(tag);
  } catch (error) {
    if (!(error instanceof UsageError)) throw error;
    throw table.fail(name, short(tag), "an action tag such as k030-s050-q4");
  }
  if (!variants.has(action.variant)) {
    const got = `${action.tag}, whose variant ${action.variant} is not in the bundle`;
    throw table.fail(name, got, `a variant of ${[...variants.keys()].join(", ")}`);
  }
  return action;
}

/**
 * @param {Table} top
 * @returns {SolConfig}
 */
function readConfig(top) {
  const found = top.value("format");
  if (found !== FORMAT) {
    throw top.fail("format", short(found), `"${FORMAT}"`, "point at a folder that `sol-rt export` wrote");
  }
  const version = top.integer("format_version", 0);
  if (version !== FORMAT_VERSION) {
    throw top.fail("format_version", version, FORMAT_VERSION, "export the bundle again with `sol-rt export -m MODEL`");
  }
  const generator = top.text("generator");
  const model = readModel(top.table("model"));
  const kv = readKv(top.table("kv"), model);
  const variants = readVariants(top.table("variants"), model);
  const dense = readAction(top, "dense", top.value("dense"), variants);
  if (dense.kv !== 100) throw top.fail("dense", dense.tag, "an action that reads all KV pages (k100)");
  const actions = readActions(top, variants);
  if (!actions.some((entry) => entry.action.tag === dense.tag)) {
    throw top.fail("actions", "a list without the dense action", dense.tag);
  }
  const policy = top.value("policy") === null ? null : readPolicy(top.table("policy"), variants);
  const files = readFiles(top.table("files"));
  const weights = top.table("weights");
  const weightsFile = weights.fileName("file");
  const weightsEntry = files.get(weightsFile);
  if (weightsEntry === undefined) throw weights.fail("file", weightsFile, "a file listed under `files`");
  const tensors = readTensors(weights.table("tensors"), weightsEntry.bytes);
  weights.done();
  for (const [key, variant] of variants) {
    if (!files.has(variant.file)) {
      throw top.fail(`variants.${key}.file`, variant.file, "a file listed under `files`");
    }
  }
  if (policy !== null && !files.has(policy.file)) {
    throw top.fail("policy.file", policy.file, "a file listed under `files`");
  }
  top.done();
  const config = { generator, model, kv, dense, variants, actions, policy, weights_file: weightsFile, tensors, files };
  checkShapes(top.path, config);
  return config;
}

/**
 * @param {Table} table
 * @returns {ModelDims}
 */
function readModel(table) {
  const vocabSize = table.integer("vocab_size", 1, 2 ** 30);
  const model = {
    name: table.text("name"),
    architecture: table.text("architecture"),
    source: table.text("source"),
    license: table.text("license"),
    vocab_size: vocabSize,
    hidden_size: table.integer("hidden_size", 1, 2 ** 20),
    num_layers: table.integer("num_layers", 1, 1024),
    num_heads: table.integer("num_heads", 1, 4096),
    num_kv_heads: table.integer("num_kv_heads", 1, 4096),
    head_dim: table.integer("head_dim", 1, 4096),
    intermediate_size: table.integer("intermediate_size", 1, 2 ** 24),
    max_context: table.integer("max_context", 1, 2 ** 27),
    bos_token_id: table.value("bos_token_id") === null ? null : table.integer("bos_token_id", 0, vocabSize - 1),
    eos_token_ids: table.integers("eos_token_ids", 0, vocabSize - 1),
  };
  if (model.num_heads % model.num_kv_heads) {
    throw table.fail("num_kv_heads", model.num_kv_heads, `a divisor of num_heads = ${model.num_heads}`);
  }
  table.done();
  return model;
}

/**
 * @param {Table} table
 * @param {ModelDims} model
 * @returns {KvLayout}
 */
function readKv(table, model) {
  if (table.has("layers")) {
    const hint = "run the bundle in Python or in the native core";
    throw table.fail("layers", "layers with a short convolution", "attention in all layers", hint);
  }
  const layout = {
    dtype: table.choice("dtype", ["float16", "int8"]),
    page_size: table.integer("page_size", PAGE_SIZE, PAGE_SIZE),
    sinks: table.integer("sinks", 0, PAGE_SIZE),
    capacity_step: table.integer("capacity_step", PAGE_SIZE, 2 ** 20),
    dense_layers: table.integers("dense_layers", 0, model.num_layers - 1),
    windows: table.has("windows") ? table.integers("windows", 0, model.max_context) : [],
  };
  if (layout.dense_layers.some((layer, index) => index > 0 && layer <= layout.dense_layers[index - 1])) {
    throw table.fail("dense_layers", short(layout.dense_layers), "each layer once, in ascending order");
  }
  if (layout.windows.length && layout.windows.length !== model.num_layers) {
    throw table.fail("windows", short(layout.windows), `one for each of the ${model.num_layers} layers`);
  }
  if (layout.capacity_step % layout.page_size) {
    throw table.fail("capacity_step", layout.capacity_step, `a multiple of page_size = ${layout.page_size}`);
  }
  table.done();
  return layout;
}

/**
 * @param {Table} table
 * @param {ModelDims} model
 */
function readVariants(table, model) {
  /** @type {Map<string, Variant>} */
  const variants = new Map();
  for (const [key, entry] of table.tables()) {
    const isBits = (/** @type {any} */ v) => v === "mixed" || (isInt(v, 1, 16) && v !== MIXED);
    const raw = entry.typed("bits", isBits, 'an integer from 1 to 16, or "mixed"');
    const bits = raw === "mixed" ? MIXED : raw;
    if (bits === THREE_BITS) throw entry.fail("bits", bits, "4, 6, 8 or \"mixed\"", WITHOUT_THREE_BITS);
    const isDensity = (/** @type {any} */ v) =>
      typeof v === "number" && v >= 0.01 && v <= 1 && Math.round(100 * v) / 100 === v;
    const density = entry.typed("channel_density", isDensity, "a share from 0.01 to 1 in hundredths");
    const file = entry.fileName("file");
    const counts = Object.fromEntries(
      Object.entries(channels(model)).map(([name, most]) => {
        const found = entry.integers(name, 1, most);
        if (found.length !== model.num_layers) {
          throw entry.fail(name, `${found.length} counts`, `${model.num_layers}, one per layer`);
        }
        return [name, found];
      }),
    );
    const weightBytes = entry.integer("weight_bytes", 1);
    const headBits = entry.integer("lm_head_bits", bits === MIXED ? 4 : bits, 16);
    const layerBits = bits === MIXED ? readLayerBits(entry, model) : null;
    const screen = entry.has("lm_head_screen") ? readScreen(entry.table("lm_head_screen"), model) : null;
    entry.done();
    if (![4, 6, 8].includes(headBits)) throw entry.fail("lm_head_bits", headBits, "4, 6 or 8");
    if (screen !== null && headBits === 4) {
      throw entry.fail("lm_head_screen", "lm_head_bits 4", "6 or 8 bits for candidates");
    }
    const name = new Action(100, Math.round(100 * density), bits).variant;
    if (key !== name) throw table.fail(key, `channel_density ${density} and bits ${raw}`, `the key ${name}`);
    for (const other of variants.values()) {
      if (other.file !== file) continue;
      if (other.bits !== bits || other.lm_head_bits !== headBits) {
        const got = `bits ${raw} and lm_head_bits ${headBits}`;
        const wanted = `${other.bits === MIXED ? "mixed" : other.bits} and ${other.lm_head_bits}`;
        throw entry.fail("lm_head_bits", got, `${wanted}, those of ${other.key}, which runs this graph`);
      }
      if (JSON.stringify(other.layer_bits) !== JSON.stringify(layerBits)) {
        throw entry.fail("layer_bits", "other bits", `those of ${other.key}, which runs the same graph ${file}`);
      }
      if (screenText(other.lm_head_screen) !== screenText(screen)) {
        const wanted = `${screenText(other.lm_head_screen)}, as ${other.key}, which runs the same graph ${file}`;
        throw entry.fail("lm_head_screen", screenText(screen), wanted);
      }
    }
    variants.set(
      key,
      /** @type {Variant} */ ({
        key, file, channel_density: density, bits, ...counts, weight_bytes: weightBytes, lm_head_bits: headBits,
        layer_bits: layerBits, lm_head_screen: screen,
      }),
    );
  }
  if (variants.size === 0) throw new BundleError(table.path, table.where, "no variants", "at least the dense one");
  return variants;
}

/**
 * @param {Table} table
 * @param {ModelDims} model
 * @returns {Screen}
 */
function readScreen(table, model) {
  const offset = table.typed("tail_offset", (/** @type {any} */ v) => v !== null && isLoss(v), "a finite number");
  const bits = table.integer("bits", 3, 4);
  if (bits === THREE_BITS) throw table.fail("bits", bits, 4, WITHOUT_THREE_BITS);
  const candidates = table.integer("candidates", 1, model.vocab_size - 1);
  table.done();
  return { candidates, tail_offset: offset };
}

/** @param {Screen | null} screen */
function screenText(screen) {
  return screen === null ? "no screen" : `${screen.candidates} candidates with offset ${screen.tail_offset}`;
}

/**
 * @param {Table} entry
 * @param {ModelDims} model
 * @returns {number[][]}
 */
function readLayerBits(entry, model) {
  const test = (/** @type {any} */ v) =>
    Array.isArray(v) &&
    v.every((row) => Array.isArray(row) && row.length === 4 && row.every((bits) => [4, 6, 8].includes(bits)));
  const rows = entry.typed("layer_bits", test, "a list of lists of 4 numbers of bits (4, 6 or 8), for qkv, o, up, down");
  if (rows.length !== model.num_layers) throw entry.fail("layer_bits", `${rows.length} layers`, model.num_layers);
  return rows;
}

/**
 * @param {Table} top
 * @param {Map<string, Variant>} variants
 */
function readActions(top, variants) {
  const raw = top.typed("actions", (v) => Array.isArray(v) && v.length > 0, "a non-empty list");
  /** @type {ActionEntry[]} */
  const entries = [];
  for (const [index, item] of raw.entries()) {
    const table = new Table(top.path, `actions[${index}]`, item);
    const action = readAction(table, "tag", table.value("tag"), variants);
    if (entries.some((entry) => entry.action.tag === action.tag)) {
      throw table.fail("tag", `${action.tag} for the second time`, "each action once");
    }
    const loss = table.typed("loss", isLoss, "a finite number of nats, or null");
    const losses = table.has("losses") ? readLosses(table.table("losses")) : new Map();
    table.done();
    entries.push({ action, loss, losses });
  }
  return entries;
}

/**
 * @param {Table} table
 * @returns {Map<number, number>}
 */
function readLosses(table) {
  /** @type {[number, number][]} */
  const found = [];
  for (const name of Object.keys(table.raw)) {
    if (!/^[1-9][0-9]{0,8}$/.test(name)) throw table.fail(name, "this key", "a context in tokens, such as 512");
    found.push([Number(name), table.typed(name, (v) => v !== null && isLoss(v), "a finite number of nats")]);
  }
  return new Map(found.sort((a, b) => a[0] - b[0]));
}

/**
 * @param {Table} table
 * @param {Map<string, Variant>} variants
 * @returns {PolicySpec}
 */
function readPolicy(table, variants) {
  const horizon = table.integer("horizon", 1, 4096);
  const scalars = table.texts("scalars");
  for (const name of scalars) {
    if (!KNOWN_SCALARS.includes(name)) throw table.fail("scalars", name, KNOWN_SCALARS.join(", "));
  }
  const tags = table.texts("actions");
  const actions = tags.map((tag) => readAction(table, "actions", tag, variants));
  const distinct = new Set(tags).size;
  if (actions.length === 0 || distinct !== actions.length) {
    const got = `${actions.length} tags, ${distinct} of them distinct`;
    throw table.fail("actions", got, "each action once, at least one");
  }
  const shape = table.integers("state_shape", 1, 2 ** 16);
  const size = shape.reduce((a, b) => a * b, 1);
  if (shape.length !== 5 || shape[1] !== 2 || shape[3] !== horizon || size > 2 ** 28) {
    throw table.fail("state_shape", short(shape), `[layers, 2, heads, ${horizon}, size]`);
  }
  const gain = table.typed("gain_over_hull", (v) => v !== null && isLoss(v), "a finite number of nats");
  const budgets = table.typed("gain_budgets", isRange, "two shares of the dense cost, the lower first");
  const file = table.fileName("file");
  const description = table.text("description");
  table.done();
  return {
    file,
    horizon,
    scalars,
    actions,
    state_shape: shape,
    description,
    gain_over_hull: gain,
    gain_budgets: budgets,
  };
}

/**
 * @param {Table} table
 * @returns {Map<string, FileEntry>}
 */
function readFiles(table) {
  const files = new Map();
  for (const [name, entry] of table.tables()) {
    if (!isFileName(name)) throw table.fail(name, "this name", "a plain file name inside the bundle");
    const sha256 = entry.text("sha256");
    if (!/^[0-9a-f]{64}$/.test(sha256)) throw entry.fail("sha256", short(sha256), "64 lower-case hex digits");
    files.set(name, { bytes: entry.integer("bytes", 0), sha256 });
    entry.done();
  }
  return files;
}

/**
 * @param {Table} table
 * @param {number} weightsBytes
 * @returns {Map<string, TensorEntry>}
 */
function readTensors(table, weightsBytes) {
  /** @type {Map<string, TensorEntry>} */
  const tensors = new Map();
  for (const [name, entry] of table.tables()) {
    const dtype = entry.choice("dtype", Object.keys(DTYPE_BITS));
    const shape = entry.integers("shape", 0);
    const tensor = { dtype, shape, offset: entry.integer("offset", 0), bytes: entry.integer("bytes", 0) };
    entry.done();
    const wanted = Math.floor((shape.reduce((a, b) => a * b, 1) * DTYPE_BITS[dtype] + 7) / 8);
    if (tensor.bytes !== wanted) throw entry.fail("bytes", tensor.bytes, `${wanted} for ${dtype} ${short(shape)}`);
    if (tensor.offset % ALIGNMENT) throw entry.fail("offset", tensor.offset, `a multiple of ${ALIGNMENT}`);
    const end = tensor.offset + tensor.bytes;
    if (end > weightsBytes) {
      throw entry.fail("offset", `an end at ${end}`, `at most ${weightsBytes}, the file's size`);
    }
    tensors.set(name, tensor);
  }
  if (tensors.size === 0) throw new BundleError(table.path, table.where, "no tensors", "every tensor of the model");
  return tensors;
}

/**
 * Compares dims and bits with the tensors: an edited dim must not misread the cache later.
 * @param {string} path
 * @param {SolConfig} config
 */
function checkShapes(path, config) {
  const { model, tensors } = config;
  const qkv = (model.num_heads + 2 * model.num_kv_heads) * model.head_dim;
  /** @type {[string, number, number, string][]} */
  const carried = [
    ["embed.scale", 0, Math.floor(model.hidden_size / BLOCK), "hidden_size"],
    ["embed.scale", 1, model.vocab_size, "vocab_size"],
    ["rope.cos", 0, model.max_context, "max_context"],
  ];
  for (let layer = 0; layer < model.num_layers; layer++) {
    const heads = Math.floor((model.num_heads * model.head_dim) / BLOCK);
    carried.push([`layers.${layer}.qkv.scale`, 0, Math.floor(model.hidden_size / BLOCK), "hidden_size"]);
    carried.push([`layers.${layer}.qkv.scale`, 1, qkv, "num_heads"]);
    carried.push([`layers.${layer}.o.scale`, 0, heads, "num_heads"]);
    carried.push([`layers.${layer}.down.scale`, 0, Math.floor(model.intermediate_size / BLOCK), "intermediate_size"]);
  }
  for (const [name, axis, expected, key] of carried) {
    const shape = tensors.get(name)?.shape;
    if (shape !== undefined && shape[axis] !== expected) {
      const wanted = `${expected} at axis ${axis}, from model.${key}`;
      throw new BundleError(path, `weights.tensors.${name}.shape`, `${short(shape)} in the weights`, wanted);
    }
  }
  const widest = 4 + 2 * [1, 2].filter((index) => tensors.has(`embed.plane${index}`)).length;
  for (const [key, variant] of config.variants) {
    const most = variant.layer_bits === null ? variant.bits : Math.max(...variant.layer_bits.flat());
    for (const [name, bits] of /** @type {[string, number][]} */ ([
      [variant.layer_bits === null ? "bits" : "layer_bits", most],
      ["lm_head_bits", variant.lm_head_bits],
    ])) {
      if (bits > widest) {
        throw new BundleError(path, `variants.${key}.${name}`, bits, `at most ${widest}, the widest in the weights`);
      }
    }
  }
}
