/** The errors that a user can meet. Each says what, where, got, expected and the next step, in one line. */

const LONGEST = 1000;
const LONGEST_PART = 200;

/** Base of every error that a user's input or environment can cause. */
export class SolError extends Error {
  /**
   * @param {string} message the text; it becomes one line of at most 1000 characters
   * @param {ErrorOptions} [options]
   */
  constructor(message, options) {
    super(plain(message).slice(0, LONGEST), options);
    this.name = new.target.name;
  }
}

/** The call itself is wrong: an unknown value, contradictory options. */
export class UsageError extends SolError {}

/** A newer generation uses the model, or the model is closed. */
export class BusyError extends UsageError {}

/** A bundle is missing, truncated, foreign or inconsistent. */
export class BundleError extends SolError {
  /**
   * @param {string} path file or folder concerned
   * @param {string} key key, tensor or file inside it; empty where the whole is meant
   * @param {unknown} got what was found
   * @param {unknown} expected what should be there
   * @param {string} hint the next step
   */
  constructor(path, key, got, expected, hint = "export the bundle again") {
    const where = key ? `${path}: ${cut(key)}` : path;
    super(`${where}: got ${cut(got)}, expected ${cut(expected)}; ${hint}`);
    this.path = path;
    this.key = key;
  }

  /**
   * An error of the core, which has worded it.
   * @param {string} message
   */
  static worded(message) {
    return Object.assign(new BundleError("", "", "", ""), { message: plain(message).slice(0, LONGEST) });
  }
}

/** A prompt or generation does not fit the model's context. */
export class ContextError extends SolError {}

/** A provider that was asked for does not work here. */
export class ProviderError extends SolError {}

/** The model produced numbers that are not finite. */
export class NumericError extends SolError {}

/**
 * A value for an error: its JSON on one line, at most 60 characters of it.
 * @param {unknown} value
 */
export function brief(value) {
  let text;
  try {
    text = typeof value === "string" ? `'${value}'` : (JSON.stringify(value) ?? String(value));
  } catch {
    text = `a ${typeof value}`;
  }
  text = text.split(/\s+/).join(" ");
  return text.length <= 60 ? text : `${text.slice(0, 59)}…`;
}

/**
 * The text of anything that was thrown, on one line of at most 200 characters.
 * @param {unknown} error
 */
export function oneLine(error) {
  return cut(plain(error instanceof Error ? error.message || error.name : String(error)));
}

/** @param {unknown} part */
function cut(part) {
  const text = String(part);
  return text.length <= LONGEST_PART ? text : `${text.slice(0, LONGEST_PART - 1)}…`;
}

/** @param {string} text */
function plain(text) {
  const escaped = (/** @type {string} */ c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`;
  return text.replaceAll(/[\r\n]+/g, " ").replaceAll(/[\p{Cc}\u2028\u2029]/gu, escaped);
}
