/** The native core as wasm: calls of sol_rt.h with arguments in its memory. `build-core.sh` builds it into `core/`. */
import { BundleError, BusyError, ContextError, NumericError, ProviderError, SolError, UsageError, oneLine } from "../errors.js";
import { STRUCTS } from "./structs.js";

/** @typedef {Record<string, Function> & {HEAPU8: Uint8Array, FS: any}} Wasm */
/** @typedef {keyof typeof STRUCTS} StructName */

const utf8 = { encode: new TextEncoder(), decode: new TextDecoder() };
const KINDS = { 1: UsageError, 4: ContextError, 5: NumericError, 6: BusyError, 7: BusyError, 10: UsageError };
const USAGE = 1;
const BUNDLE = 2;
const FLAG = /--([a-z]+(?:-[a-z]+)*)/g; // options have their names of the command line in the core's errors

/** @type {Promise<Core> | null} */
let opened = null;

/** The core, which all models share. Throws ProviderError where it cannot be loaded. */
export function openCore() {
  opened ??= loaded().catch((error) => {
    opened = null; // the next model tries again
    throw error;
  });
  return opened;
}

async function loaded() {
  try {
    // @ts-ignore: the file is built
    const { default: make } = await import("../../core/sol_rt.js");
    return new Core(await make());
  } catch (error) {
    throw new ProviderError(`core/sol_rt.wasm cannot be loaded (${oneLine(error)}); build it with bindings/web/build-core.sh`);
  }
}

/** The functions and the memory of the core. */
export class Core {
  /** @param {Wasm} wasm */
  constructor(wasm) {
    this.wasm = wasm;
    this.files = wasm.FS;
  }

  /**
   * Calls a function that returns an error. Throws a SolError of its kind.
   * @param {string} name
   * @param {...number} values
   */
  call(name, ...values) {
    const error = this.wasm[`_${name}`](...values);
    if (error === 0) return;
    const code = this.wasm._sol_error_code(error);
    const worded = this.text(this.wasm._sol_error_message(error));
    const message = code === USAGE ? worded.replaceAll(FLAG, (_, name) => name.replaceAll("-", "_")) : worded;
    this.wasm._sol_error_release(error);
    if (code === BUNDLE) throw BundleError.worded(message);
    throw new (KINDS[/** @type {keyof typeof KINDS} */ (code)] ?? SolError)(message);
  }

  /**
   * Calls `use` with memory that is freed after it.
   * @template T
   * @param {(memory: Memory) => T} use
   * @returns {T}
   */
  borrow(use) {
    const memory = new Memory(this);
    try {
      return use(memory);
    } finally {
      memory.free();
    }
  }

  /** The memory as it is now: it may move when it grows. */
  get view() {
    const { buffer, byteOffset } = this.wasm.HEAPU8;
    return new DataView(buffer, byteOffset);
  }

  /**
   * A copy of an array.
   * @template {{new (buffer: ArrayBuffer): any, BYTES_PER_ELEMENT: number}} T
   * @param {T} kind
   * @param {number} pointer
   * @param {number} length
   * @returns {InstanceType<T>}
   */
  array(kind, pointer, length) {
    return new kind(/** @type {ArrayBuffer} */ (this.wasm.HEAPU8.slice(pointer, pointer + length * kind.BYTES_PER_ELEMENT).buffer));
  }

  /**
   * Text that ends in NUL, or has `length` bytes; empty for NULL.
   * @param {number} pointer
   * @param {number} [length]
   */
  text(pointer, length) {
    if (pointer === 0) return "";
    const bytes = this.wasm.HEAPU8;
    return utf8.decode.decode(bytes.slice(pointer, length === undefined ? bytes.indexOf(0, pointer) : pointer + length));
  }
}

/** Memory of the core for the arguments of a call. */
export class Memory {
  /** @type {number[]} */
  #given = [];

  /** @param {Core} core */
  constructor(core) {
    this.core = core;
  }

  /** @param {number} bytes */
  take(bytes) {
    const pointer = this.core.wasm._malloc(Math.max(bytes, 1));
    if (pointer === 0) throw new SolError(`core: no memory for ${bytes} bytes; close other models`);
    this.#given.push(pointer);
    return pointer;
  }

  /** @param {ArrayBufferView} array */
  put(array) {
    const pointer = this.take(array.byteLength);
    this.core.wasm.HEAPU8.set(new Uint8Array(array.buffer, array.byteOffset, array.byteLength), pointer);
    return pointer;
  }

  /** A string that ends in NUL. @param {string} text */
  string(text) {
    return this.put(utf8.encode.encode(`${text}\0`));
  }

  /**
   * A struct of zeros with its size set.
   * @param {StructName} name
   */
  struct(name) {
    const { size } = STRUCTS[name];
    const made = new Struct(this.core, name, this.put(new Uint8Array(size)));
    made.set("size", size);
    return made;
  }

  /**
   * The array that a function fills, which first says how long it is.
   * @template {{new (buffer: ArrayBuffer): any, BYTES_PER_ELEMENT: number}} T
   * @param {T} kind
   * @param {(array: number, capacity: number, count: number) => void} fill
   * @returns {InstanceType<T>}
   */
  filled(kind, fill) {
    const count = this.take(4);
    fill(0, 0, count);
    const length = this.core.view.getUint32(count, true);
    const array = this.take(length * kind.BYTES_PER_ELEMENT);
    if (length > 0) fill(array, length, count);
    return this.core.array(kind, array, length);
  }

  free() {
    for (const pointer of this.#given) this.core.wasm._free(pointer);
    this.#given = [];
  }
}

/** A struct in the core's memory. */
export class Struct {
  /**
   * @param {Core} core
   * @param {StructName} name
   * @param {number} pointer
   */
  constructor(core, name, pointer) {
    this.core = core;
    this.pointer = pointer;
    this.fields = STRUCTS[name].fields;
  }

  /** @param {string} name @returns {number} */
  get(name) {
    const { at, type } = /** @type {{at: number, type: string}} */ (this.fields.get(name));
    const [view, place] = [this.core.view, this.pointer + at];
    if (type === "f64") return view.getFloat64(place, true);
    if (type === "i64") return Number(view.getBigInt64(place, true));
    return type === "i32" ? view.getInt32(place, true) : view.getUint32(place, true);
  }

  /** @param {string} name */
  text(name) {
    return this.core.text(this.get(name));
  }

  /** @param {string} name @param {number | bigint} value */
  set(name, value) {
    const { at, type } = /** @type {{at: number, type: string}} */ (this.fields.get(name));
    const [view, place] = [this.core.view, this.pointer + at];
    if (type === "f64") view.setFloat64(place, Number(value), true);
    else if (type === "i64") view.setBigInt64(place, BigInt(value), true);
    else view.setInt32(place, Number(value), true);
  }
}
