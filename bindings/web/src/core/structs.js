/** Structs of sol_rt.h as they lie in the memory of wasm: every field in order, with its type. Pointers and sizes have 4 bytes there. */

/** @typedef {"i32" | "u32" | "i64" | "f64" | "ptr"} Type */
/** @typedef {{size: number, fields: Map<string, {at: number, type: Type}>}} Layout */

/**
 * A layout by the rules of C: a field begins at a multiple of its size.
 * @param {string} text fields as `name:type`
 * @returns {Layout}
 */
function layout(text) {
  const fields = new Map();
  let [at, widest] = [0, 4];
  for (const [name, type] of text.trim().split(/\s+/).map((field) => field.split(":"))) {
    const bytes = type.endsWith("64") ? 8 : 4;
    at = Math.ceil(at / bytes) * bytes;
    fields.set(name, { at, type });
    at += bytes;
    widest = Math.max(widest, bytes);
  }
  return { size: Math.ceil(at / widest) * widest, fields };
}

export const STRUCTS = {
  sol_model_options: layout("size:u32 verify:i32 max_context:i32 cost_table:ptr progress:ptr user:ptr prefill:ptr costs_folder:ptr device:ptr costs:i32"),
  sol_model_info: layout(`size:u32 name:ptr generator:ptr identity:ptr vocab_size:i32 hidden_size:i32 num_layers:i32 max_context:i32
    num_actions:i32 has_policy:i32 has_losses:i32 has_tokenizer:i32 has_chat:i32 native:i32 default_schedule:ptr cost_model:ptr
    dense:ptr mapped_bytes:i64 cost_note:ptr`),
  sol_action_info: layout("size:u32 tag:ptr relative_cost:f64 loss:f64"),
  sol_host_engine: layout("size:u32 user:ptr forward:ptr held:ptr"),
  sol_run: layout(`size:u32 tokens:ptr num_tokens:u32 past:u32 action:ptr graph:ptr kv_pages:ptr channels:ptr num_logits:u32`),
  sol_policy_run: layout(`size:u32 graph:ptr hidden:ptr hidden_size:u32 scalars:ptr num_scalars:u32 token:i32 first:i32
    previous_action:i64 step:i64`),
  sol_logit_bias: layout("token:i32 bias:i32"), // the bias is a float
  sol_generate_options: layout(`size:u32 max_new_tokens:i32 do_sample:i32 temperature:f64 top_k:i32 top_p:f64 min_p:f64
    repetition_penalty:f64 presence_penalty:f64 frequency_penalty:f64 seed:i64 top_logprobs:i32 logit_bias:ptr num_logit_bias:u32
    stop_strings:ptr num_stop_strings:u32 end_tokens:ptr num_end_tokens:u32 budget:f64 tokens_per_second:f64 max_loss:f64
    kv_density:f64 channel_density:f64 bits:f64 schedule:ptr reuse_cache:i32 trace:ptr replay:ptr choose:ptr choose_user:ptr
    mask:ptr mask_user:ptr lossless:i32 lookup:i32`),
  sol_token: layout(`size:u32 token:i32 text:ptr text_length:u32 action:ptr logprob:f64 cost:f64 relative_cost:f64 achieved_budget:f64
    requested_budget:f64 milliseconds:f64 finish:i32 top_tokens:ptr top_logprobs:ptr num_top:u32`),
  sol_result: layout(`size:u32 num_tokens:i32 prompt_tokens:i32 cached_tokens:i32 schedule:ptr cost_model:ptr requested_budget:f64
    achieved_budget:f64 expected_loss:f64 prompt_tokens_per_second:f64 tokens_per_second:f64 time_to_first_token_ms:f64
    fastest_tokens_per_second:f64 floored:i32 first_difference:i32 finish:i32 drafted_tokens:i64
    accepted_tokens:i64 asked_budget:f64 dense_prompt:i32`),
};
