/**
 * sol_rt in browsers and Node: a language model whose compute budget is a dial.
 *
 *     const model = await SolModel.load("/bundles/smollm2-135m");
 *     const stream = await model.stream([{ role: "user", content: "Hello!" }], { budget: 0.6 });
 *     for await (const token of stream) write(token.text);
 */
export { Bundle } from "./bundle/bundle.js";
export {
  BundleError, BusyError, ContextError, NumericError, ProviderError, SolError, UsageError,
} from "./errors.js";
export { SolModel } from "./generate/model.js";
export { Stream } from "./generate/stream.js";

/** @typedef {import("./bundle/source.js").BundleLocation} BundleLocation */
/** @typedef {import("./generate/options.js").GenerationConfig} GenerationConfig */
/** @typedef {import("./generate/stream.js").GeneratedToken} GeneratedToken */
/** @typedef {import("./generate/stream.js").Generation} Generation */
/** @typedef {import("./generate/model.js").Message} Message */
/** @typedef {import("./generate/model.js").LoadOptions} LoadOptions */
/** @typedef {import("./generate/model.js").Prompt} Prompt */
/** @typedef {import("./generate/model.js").StreamOptions} StreamOptions */
