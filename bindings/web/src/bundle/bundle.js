/** A checked bundle: its config, and its files as they are read. */
import { BundleError, ProviderError, SolError } from "../errors.js";
import { ChatTemplate, CONFIG_FILE, FILE as TEMPLATE } from "../text/chat_template.js";
import { FILE as TOKENIZER, Tokenizer } from "../text/tokenizer.js";
import { CONFIG_NAME, parseConfig } from "./config.js";
import { openSource } from "./source.js";

/** @import {SolConfig} from "./config.js" */
/** @import {BundleLocation, BundleSource} from "./source.js" */

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

  /**
   * @param {BundleSource} source
   * @param {SolConfig} config
   * @param {OpenOptions} options
   */
  constructor(source, config, options) {
    this.source = source;
    this.config = config;
    this.options = options;
    this.name = source.name;
  }

  /**
   * Reads and checks a bundle's config. Throws BundleError.
   * @param {BundleLocation} location
   * @param {OpenOptions} [options]
   */
  static async open(location, options = {}) {
    const source = openSource(location);
    const content = await source.read(CONFIG_NAME, { signal: options.signal });
    return new Bundle(source, parseConfig(decoded(content), `${source.name}/${CONFIG_NAME}`), options);
  }

  /**
   * True if the bundle has a file.
   * @param {string} file
   */
  has(file) {
    return this.config.files.has(file);
  }

  /**
   * Content of a file, whose size and hash were compared with the config.
   * @param {string} file
   */
  async read(file) {
    const entry = this.config.files.get(file);
    if (entry === undefined) throw new BundleError(this.name, file, "no such file", "a file of the bundle");
    const { signal, onProgress, verify = true } = this.options;
    const all = this.config.files.get(this.config.weights_file)?.bytes ?? 0;
    const onBytes = (/** @type {number} */ bytes) => {
      this.#done += bytes;
      onProgress?.(Math.min(this.#done, all), all);
    };
    const big = file === this.config.weights_file;
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

  /** The model's tokenizer. Throws BundleError if it is missing, unreadable or does not fit the model. */
  async tokenizer() {
    const { vocab_size, eos_token_ids } = this.config.model;
    const text = decoded(await this.read(TOKENIZER));
    return Tokenizer.parse(text, `${this.name}/${TOKENIZER}`, vocab_size, eos_token_ids);
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
