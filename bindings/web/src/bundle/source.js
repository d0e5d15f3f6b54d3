/**
 * Sources of a bundle's files: a URL, files that the user picked, a folder of the File System Access API, or in Node a
 * folder on disk.
 */
import { BundleError, UsageError, brief, oneLine } from "../errors.js";

/**
 * A file of a bundle whose content is read. `sha256` names the content in a URL, so that a cache may keep it for ever.
 * @typedef {{signal?: AbortSignal, sha256?: string, onBytes?: (bytes: number) => void, size?: number}} ReadOptions
 * @typedef {{name: string, read(file: string, options?: ReadOptions): Promise<Uint8Array>,
 *   forget?(file: string, sha256: string): Promise<void>}} BundleSource
 * @typedef {string | URL | Iterable<File> | FileSystemDirectoryHandle | BundleSource} BundleLocation
 */

const HINT = "point at a folder that `sol-rt export` wrote";

/**
 * The source behind what a caller gave.
 * @param {BundleLocation} location
 * @returns {BundleSource}
 */
export function openSource(location) {
  if (typeof location === "string" || location instanceof URL) {
    const text = String(location);
    if (typeof document === "undefined" && typeof process !== "undefined" && !/^[a-z][a-z0-9+.-]+:\/\//i.test(text)) {
      return new DiskSource(text);
    }
    return new UrlSource(text);
  }
  if (location !== null && typeof location === "object") {
    if ("read" in location && typeof location.read === "function") return location;
    if ("getFileHandle" in location) return new HandleSource(location);
    if (Symbol.iterator in location) return new FilesSource(location);
  }
  throw new UsageError(`bundle: got ${brief(location)}, expected a URL, files, or a folder's handle`);
}

/** Files below a URL. */
class UrlSource {
  /** @param {string} url */
  constructor(url) {
    const base = globalThis.document?.baseURI ?? globalThis.location?.href;
    try {
      this.url = new URL(url.endsWith("/") ? url : `${url}/`, base);
    } catch {
      throw new UsageError(`bundle: got ${brief(url)}, expected the URL of a bundle's folder`);
    }
    this.name = this.url.href.replace(/\/$/, "");
  }

  /**
   * @param {string} file
   * @param {ReadOptions} [options]
   */
  async read(file, { signal, sha256, onBytes, size } = {}) {
    const url = this.#address(file, sha256);
    let response;
    try {
      response = await fetch(url, { signal });
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new BundleError(this.name, file, `no answer (${oneLine(error)})`, "a file", "check the URL and the network");
    }
    if (!response.ok || response.body === null) {
      throw new BundleError(this.name, file, `HTTP status ${response.status}`, "a file", HINT);
    }
    const broke = (/** @type {unknown} */ error) => {
      if (signal?.aborted) throw error;
      const got = `a connection that broke (${oneLine(error)})`;
      throw new BundleError(this.name, file, got, "a file", "check the URL and the network");
    };
    if (size === undefined) return new Uint8Array(await response.arrayBuffer().catch(broke));
    const content = allocated(size, this.name, file);
    let at = 0;
    for (const reader = response.body.getReader(); ; ) {
      const { done, value } = await reader.read().catch(broke);
      if (done) break;
      if (at + value.length > size) {
        await reader.cancel();
        throw wrongSize(this.name, file, `more than ${size}`, size);
      }
      content.set(value, at);
      at += value.length;
      onBytes?.(value.length);
    }
    if (at !== size) throw wrongSize(this.name, file, at, size);
    return content;
  }

  /**
   * Drops a damaged file from the browser's caches, so that the next try asks the server again.
   * @param {string} file
   * @param {string} sha256
   */
  async forget(file, sha256) {
    for (const name of (await globalThis.caches?.keys()) ?? []) {
      await (await caches.open(name)).delete(this.#address(file, sha256));
    }
  }

  /**
   * @param {string} file
   * @param {string} [sha256] a cache may keep what the address names by its hash
   */
  #address(file, sha256) {
    const url = new URL(file, this.url);
    if (sha256 !== undefined) url.searchParams.set("sha256", sha256.slice(0, 16));
    return url;
  }
}

/** Files that the user picked, for example by `<input type="file" webkitdirectory>`. */
class FilesSource {
  /** @param {Iterable<File>} files */
  constructor(files) {
    this.files = new Map([...files].map((file) => [file.name, file]));
    const path = [...this.files.values()][0]?.webkitRelativePath;
    this.name = path?.split("/")[0] || "the chosen folder";
  }

  /**
   * @param {string} file
   * @param {ReadOptions} [options]
   */
  async read(file, options = {}) {
    return contentOf(this.files.get(file), this.name, file, options);
  }
}

/** A folder of the File System Access API. */
class HandleSource {
  /** @param {FileSystemDirectoryHandle} handle */
  constructor(handle) {
    this.handle = handle;
    this.name = handle.name;
  }

  /**
   * @param {string} file
   * @param {ReadOptions} [options]
   */
  async read(file, options = {}) {
    const found = await this.handle.getFileHandle(file).then((handle) => handle.getFile(), () => undefined);
    return contentOf(found, this.name, file, options);
  }
}

/** A folder on disk, in Node. */
class DiskSource {
  /** @param {string} folder */
  constructor(folder) {
    this.name = folder.replace(/\/+$/, "");
  }

  /**
   * @param {string} file
   * @param {ReadOptions} [options]
   */
  async read(file, { onBytes, size, signal } = {}) {
    const { readFile } = await import("node:fs/promises");
    let content;
    try {
      content = new Uint8Array(await readFile(`${this.name}/${file}`, { signal }));
    } catch (error) {
      if (signal?.aborted) throw error;
      const got = /** @type {any} */ (error).code === "ENOENT" ? "no such file" : oneLine(error);
      throw new BundleError(this.name, file, got, "a file of a bundle", HINT);
    }
    if (size !== undefined && content.length !== size) throw wrongSize(this.name, file, content.length, size);
    onBytes?.(content.length);
    return content;
  }
}

/**
 * @param {File | undefined} found
 * @param {string} name
 * @param {string} file
 * @param {ReadOptions} options
 */
async function contentOf(found, name, file, { size, onBytes, signal }) {
  if (found === undefined) throw new BundleError(name, file, "no such file", "a file of a bundle", HINT);
  if (size !== undefined && found.size !== size) throw wrongSize(name, file, found.size, size);
  signal?.throwIfAborted();
  try {
    const content = new Uint8Array(await found.arrayBuffer());
    onBytes?.(content.length);
    return content;
  } catch (error) {
    throw new BundleError(name, file, `an unreadable file (${oneLine(error)})`, "a readable file", "choose it again");
  }
}

/**
 * @param {number} size
 * @param {string} name
 * @param {string} file
 */
function allocated(size, name, file) {
  try {
    return new Uint8Array(size);
  } catch {
    const hint = "export with --target web and fewer bits, or use a smaller model";
    throw new BundleError(name, file, `${size} bytes`, "what this browser can allocate", hint);
  }
}

/**
 * @param {string} name
 * @param {string} file
 * @param {unknown} got
 * @param {number} size
 */
function wrongSize(name, file, got, size) {
  return new BundleError(`${name}/${file}`, "", `${got} bytes`, `${size} bytes`, "copy or export the bundle again");
}
