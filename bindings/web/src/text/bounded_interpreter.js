/**
 * Renders a parsed chat template within limits. Templates come from untrusted sources, and run in the page's own thread.
 *
 * The library evaluates every node of a template by one function, `evaluate`, which counts here what it makes. Where one
 * call could make too much at once, it is checked before: the numbers of `range`, what `replace` makes, and the lengths of
 * texts that other filters put in many places. The limits on output and texts are those of the Python runtime.
 */
import { Environment, Interpreter, Template } from "@huggingface/jinja";

/** @import {Template as Parsed} from "@huggingface/jinja" */
/** @typedef {{type: string, value?: any, [key: string]: any}} Node a node of the template's tree, or a value that it has */

const OUTPUT = 1 << 18; // characters that a rendering may write, beyond REPEATED times those of the conversation
const REPEATED = 4;
const LARGEST_LOOP = 1 << 16; // items that all loops of one rendering may have together: the library takes some 10 us for each
const LARGEST_TEXT = 1 << 20; // characters and items of one value, unless the conversation is longer
const LONGEST_INSERT = 64; // characters that a filter may write in many places
const MADE = 64; // times the largest text: what all values of a rendering may have together
const MILLISECONDS = 1000;
const STEPS_A_LOOK = 64; // between two looks at the clock, and after a value of more than LARGE
const LARGE = 1 << 10;

const INSERTING = ["join", "indent", "tojson"];
const strftime = new Template("{{ strftime_now(format) }}"); // the library's own is not exported

/** Evaluates one template once. */
export class BoundedInterpreter extends /** @type {any} */ (Interpreter) {
  #steps = 0;
  #items = 0;
  #made = 0;
  #end = performance.now() + MILLISECONDS;
  /** Characters and items of values that never change. @type {WeakMap<Node, number>} */
  #sizes = new WeakMap();
  /** Nodes that are arguments of a filter that may write them in many places. @type {WeakSet<Node>} */
  #inserted = new WeakSet();
  /** Nodes that a loop goes through. @type {WeakSet<Node>} */
  #looped = new WeakSet();
  /** Nodes whose text may be asked for its method `replace`. @type {WeakSet<Node>} */
  #replaced = new WeakSet();
  /** Methods `replace` of these nodes, which check their results. @type {WeakSet<Node>} */
  #checked = new WeakSet();

  /** @param {Record<string, unknown>} values variables of the template */
  constructor(values) {
    super(new Environment());
    this.largestOutput = OUTPUT + REPEATED * length(values);
    this.largestText = Math.max(LARGEST_TEXT, this.largestOutput);
    /** @type {Record<string, unknown>} */
    const globals = {
      true: true, false: false, none: null, True: true, False: false, None: null,
      range: this.#range.bind(this),
      /** @param {string} message */
      raise_exception(message) {
        throw new Error(message);
      },
      strftime_now: (/** @type {string} */ format) => strftime.render({ format }),
    };
    for (const [name, value] of Object.entries({ ...globals, ...values })) this.global.set(name, value);
  }

  /**
   * The text of a template. Throws an Error where it fails, or does not keep the limits.
   * @param {Parsed} template
   * @returns {string}
   */
  render(template) {
    const text = /** @type {string} */ (this.run(template.parsed).value);
    if (text.length > this.largestOutput) {
      const limit = `${this.largestOutput} characters, ${REPEATED} times the conversation's and ${OUTPUT}`;
      throw new Error(`it writes more than ${limit}`);
    }
    return text;
  }

  /**
   * @param {any} node
   * @param {Environment} environment
   * @returns {any}
   */
  evaluate(node, environment) {
    if (++this.#steps % STEPS_A_LOOK === 0) this.#look();
    if (node !== undefined) this.#mark(node);
    const value = super.evaluate(node, environment);
    if (this.#looped.has(node)) this.#loop(value.value?.length ?? value.value?.size ?? 0);
    if (this.#inserted.has(node)) this.#checkInserts(value);
    if (this.#replaced.has(node) && value.type === "StringValue") this.#checkReplace(value);
    this.#count(value);
    return value;
  }

  #look() {
    if (performance.now() > this.#end) throw new Error(`it takes more than ${MILLISECONDS / 1000} s`);
  }

  /** @param {number} items */
  #loop(items) {
    this.#items += items;
    if (this.#items > LARGEST_LOOP) throw loopsTooLong();
  }

  /**
   * Marks the parts of a node whose values are checked.
   * @param {Node} node
   */
  #mark(node) {
    if (node.type === "For") this.#looped.add(node.iterable.type === "SelectExpression" ? node.iterable.lhs : node.iterable);
    if (node.type === "MemberExpression") this.#replaced.add(node.object);
    if (node.type !== "FilterExpression" && node.type !== "FilterStatement") return;
    const { type, callee, args } = node.filter;
    const replaces = type === "CallExpression" && callee.value === "replace";
    if (replaces && node.type === "FilterExpression") this.#replaced.add(node.operand);
    // the text of `{% filter %}` is none that was evaluated
    if (type !== "CallExpression" || !(INSERTING.includes(callee.value) || (replaces && node.type === "FilterStatement"))) return;
    for (const argument of args) {
      const isInner = argument.type.startsWith("Keyword") || argument.type === "SpreadExpression";
      this.#inserted.add(isInner ? (argument.argument ?? argument.value) : argument);
    }
  }

  /**
   * Makes a text's method `replace` check the length of what it makes.
   * @param {Node} text
   */
  #checkReplace(text) {
    const method = text.builtins.get("replace");
    if (this.#checked.has(method)) return;
    this.#checked.add(method);
    const replace = method.value;
    method.value = (/** @type {Node[]} */ given, /** @type {Environment} */ scope) => {
      const [old, put] = given.map(({ value }) => (typeof value === "string" ? value : ""));
      const places = old === "" ? text.value.length + 1 : text.value.split(old).length - 1;
      this.#checkSize(text.value.length + places * (put.length - old.length));
      return replace(given, scope);
    };
  }

  /**
   * Checks what a filter may write in many places.
   * @param {Node | undefined} value
   */
  #checkInserts(value) {
    const inserts = value?.type === "ArrayValue" || value?.type === "TupleValue" ? value.value : [...(value?.value?.values?.() ?? [value])];
    for (const insert of inserts) {
      const size = typeof insert?.value === "number" ? insert.value : (insert?.value?.length ?? 0);
      if (size > LONGEST_INSERT) throw new Error(`it writes more than ${LONGEST_INSERT} characters in many places`);
    }
  }

  /**
   * Adds a value to what was made, if it is new.
   * @param {Node} value
   */
  #count(value) {
    if (typeof value.value !== "string" && typeof value.value !== "object") return;
    if (value.value === null || this.#sizes.has(value)) return;
    const size = this.#sizeOf(value, new Map());
    if (size > LARGE) this.#look();
    if (typeof value.value === "string") this.#sizes.set(value, size);
    this.#checkSize(size);
    this.#made += size;
    if (this.#made > MADE * this.largestText) {
      throw new Error(`it makes texts and lists of more than ${MADE * this.largestText} items`);
    }
  }

  /** @param {number} size characters or items */
  #checkSize(size) {
    if (size > this.largestText) throw new Error(`it makes a text or list of more than ${this.largestText} items`);
  }

  /**
   * Characters and items of a value, as often as it would be written.
   * @param {Node} value
   * @param {Map<Node, number>} found sizes in this call: those of a namespace, which may change, and of what holds one
   * @returns {number}
   */
  #sizeOf(value, found) {
    const inner = value.value;
    if (typeof inner === "string") return inner.length;
    if (inner === null || typeof inner !== "object") return 1;
    const known = this.#sizes.get(value) ?? found.get(value);
    if (known !== undefined) return known;
    found.set(value, Infinity); // a value that holds itself
    let size = 1;
    let isFixed = value.type !== "NamespaceValue";
    for (const [key, item] of inner.entries()) {
      size += (typeof key === "string" ? key.length : 0) + this.#sizeOf(item, found);
      isFixed &&= !found.has(item);
    }
    found.set(value, size);
    if (isFixed) {
      this.#sizes.set(value, size);
      found.delete(value);
    }
    return size;
  }

  /**
   * `range` of Python.
   * @param {number} start
   * @param {number} [stop]
   * @param {number} [step]
   */
  #range(start, stop, step = 1) {
    if (stop === undefined) [start, stop] = [0, start];
    if (![start, stop, step].every(Number.isInteger) || step === 0) throw new Error("range() wants whole numbers, and a step other than 0");
    const count = Math.max(0, Math.ceil((stop - start) / step));
    if (count > LARGEST_LOOP) throw loopsTooLong();
    return Array.from({ length: count }, (_, i) => start + i * step);
  }
}

function loopsTooLong() {
  return new Error(`it loops over more than ${LARGEST_LOOP} items`);
}

/**
 * Characters of all texts in a value, keys included.
 * @param {unknown} value
 * @returns {number}
 */
function length(value) {
  if (typeof value === "string") return value.length;
  if (value === null || typeof value !== "object") return 0;
  return Object.entries(value).reduce((sum, [key, item]) => sum + (Array.isArray(value) ? 0 : key.length) + length(item), 0);
}
