/** A checked bundle: its config, and its files as they are read. */
import { CORE_FILES } from "../core/core_model.js";
import { BundleError, ProviderError, SolError } from "../errors.js";
import { ChatTemplate, CONFIG_FILE, FILE as TEMPLATE } from "../text/chat_template.js";
import { CONFIG_NAME, listedFiles, parseConfig } from "./config.js";
import { openSource } from "./source.js";

/** @import {SolConfig} from "./config.js" */
/** @import {BundleLocation, BundleSource} from "./source.js" */

const TOKENIZER = "tokenizer.json";

/**
 * @typedef {object} OpenOptions
 * @property {boolean} [verify] whether hashes are compared with the config; true by default
 * @property {AbortSignal} [signal] ends the download
 * @property {(done: number, all: number) => void} [onProgress] called with the bytes that were read and all that will be
 */

/** A bundle whose files are read when they are asked for. */
export class Bundle {
  /** @type {Promise<Uint8Array> | null} */
  #weights = null;
  #done = 0;
  #content;
  #files;
  /** @type {SolConfig | null} */
  #config = null;
  /** @type {Uint8Array | null} */
  #tokenizer = null;

  /**
   * @param {BundleSource} source
   * @param {Uint8Array} content of the config
   * @param {OpenOptions} options
   */
  constructor(source, content, options) {
    this.source = source;
    this.options = options;
    this.name = source.name;
    this.#content = content;
    this.#files = listedFiles(decoded(content));
  }

  /**
   * Reads a bundle's config, which the core checks. Throws BundleError.
   * @param {BundleLocation} location
   * @param {OpenOptions} [options]
   */
  static async open(location, options = {}) {
    const source = openSource(location);
    const content = await source.read(CONFIG_NAME, { signal: options.signal });
    return new Bundle(source, content, options);
  }

  /** The config and the files that the core reads, by name. Throws BundleError. */
  async coreFiles() {
    const files = new Map([[CONFIG_NAME, this.#content]]);
    for (const file of CORE_FILES) if (this.has(file)) files.set(file, await this.read(file));
    this.#tokenizer = files.get(TOKENIZER) ?? null;
    return files;
  }

  /** Takes the config over once the core has checked it. Throws BundleError for a bundle that does not run here. */
  readConfig() {
    this.#config = parseConfig(decoded(this.#content), `${this.name}/${CONFIG_NAME}`);
  }

  get config() {
    if (this.#config === null) throw new SolError(`${this.name}: the config was not checked yet`);
    return this.#config;
  }

  /**
   * True if the bundle has a file.
   * @param {string} file
   */
  has(file) {
    return this.#files.has(file);
  }

  /**
   * Content of a file, whose size and hash were compared with the config.
   * @param {string} file
   */
  async read(file) {
    const entry = this.#files.get(file);
    if (entry === undefined) throw new BundleError(this.name, file, "no such file", "a file of the bundle");
    const { signal, onProgress, verify = true } = this.options;
    const weights = this.#config?.weights_file;
    const all = weights === undefined ? 0 : (this.#files.get(weights)?.bytes ?? 0);
    const onBytes = (/** @type {number} */ bytes) => {
      this.#done += bytes;
      onProgress?.(Math.min(this.#done, all), all);
    };
    const big = file === weights;
    const content = await this.source.read(file, {
      signal, sha256: entry.sha256, size: entry.bytes, onBytes: big ? onBytes : undefined,
    });
    if (content.length !== entry.bytes) {
      const path = `${this.name}/${file}`;
      throw new BundleError(path, "", `${content.length} bytes`, `${entry.bytes} bytes`, "copy or export the bundle again");
    }
    if (verify) {
      const digest = await sha256(content);
      if (digest !== entry.sha256) {
        await this.source.forget?.(file, entry.sha256);
        const hint = "the file was changed or damaged: copy or export the bundle again";
        const [got, expected] = [digest, entry.sha256].map((text) => `${text.slice(0, 12)}…`);
        throw new BundleError(`${this.name}/${file}`, "sha256", got, expected, hint);
      }
    }
    return content;
  }

  /**
   * Text of a file; null if the bundle lacks it.
   * @param {string} file
   */
  async text(file) {
    return this.has(file) ? decoded(await this.read(file)) : null;
  }

  /** Content of the weights file, kept until `forgetWeights`. */
  weights() {
    this.#done = 0;
    this.#weights ??= this.read(this.config.weights_file).catch((error) => {
      this.#weights = null;
      throw error;
    });
    return this.#weights;
  }

  /** Frees the weights' memory; who needs them again reads them again. */
  forgetWeights() {
    this.#weights = null;
  }

  /** Content of `tokenizer.json`, which the core has checked. Throws BundleError if there is none. @returns {any} */
  tokenizerJson() {
    if (this.#tokenizer === null) throw new BundleError(this.name, TOKENIZER, "no such file", "a file of the bundle");
    const json = JSON.parse(decoded(this.#tokenizer));
    this.#tokenizer = null;
    return json;
  }

  /** The model's chat template. Throws UsageError if it has none. */
  async chatTemplate() {
    return ChatTemplate.of(this.name, await this.text(TEMPLATE), await this.text(CONFIG_FILE));
  }
}

/** @param {Uint8Array} content */
function decoded(content) {
  return new TextDecoder().decode(content);
}

/** @param {Uint8Array} content */
async function sha256(content) {
  if (globalThis.crypto?.subtle === undefined) {
    const next = "serve the page by https or from localhost, or pass verify: false";
    throw new ProviderError(`hashes cannot be compared: this page has no crypto.subtle; ${next}`);
  }
  try {
    const digest = await crypto.subtle.digest("SHA-256", /** @type {Uint8Array<ArrayBuffer>} */ (content));
    return Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, "0")).join("");
  } catch (error) {
    throw new SolError(`hashes cannot be compared: ${error}; pass verify: false`);
  }
}
