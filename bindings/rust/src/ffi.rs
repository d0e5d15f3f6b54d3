//! `sol_rt.h` in Rust, by ../generate-ffi.sh; the header says what it means.
#![allow(missing_docs, dead_code, non_camel_case_types)]

pub const SOL_RT_INTERFACE_VERSION: u32 = 2;
pub const SOL_OK: sol_code = 0;
pub const SOL_ERROR_USAGE: sol_code = 1;
pub const SOL_ERROR_BUNDLE: sol_code = 2;
pub const SOL_ERROR_RUNTIME: sol_code = 3;
pub const SOL_ERROR_CONTEXT: sol_code = 4;
pub const SOL_ERROR_NUMERIC: sol_code = 5;
pub const SOL_ERROR_BUSY: sol_code = 6;
pub const SOL_ERROR_CANCELLED: sol_code = 7;
pub const SOL_ERROR_WRITE: sol_code = 8;
pub const SOL_ERROR_MEMORY: sol_code = 9;
pub const SOL_ERROR_TEXT: sol_code = 10;
pub const SOL_ERROR_HOST: sol_code = 11;
pub const SOL_ERROR_INTERNAL: sol_code = 99;
pub type sol_code = std::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct sol_error {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct sol_runtime {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct sol_runtime_options {
    pub size: u32,
    pub ort_api_base: *const std::ffi::c_void,
    pub ort_library: *const std::ffi::c_char,
    pub threads: i32,
    pub native_operators: i32,
    pub spin: i32,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct sol_model {
    _unused: [u8; 0],
}
pub const SOL_VERIFY_NONE: sol_verify = 0;
pub const SOL_VERIFY_SMALL: sol_verify = 1;
pub const SOL_VERIFY_ALL: sol_verify = 2;
pub type sol_verify = std::ffi::c_uint;
pub type sol_progress = ::std::option::Option<unsafe extern "C" fn(user: *mut std::ffi::c_void, what: *const std::ffi::c_char, done: u64, total: u64) -> i32>;
pub const SOL_COSTS_DEFAULT: sol_cost_source = 0;
pub const SOL_COSTS_BYTES: sol_cost_source = 1;
pub const SOL_COSTS_PROFILED: sol_cost_source = 2;
pub const SOL_COSTS_MEASURED: sol_cost_source = 3;
pub type sol_cost_source = std::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct sol_model_options {
    pub size: u32,
    pub verify: sol_verify,
    pub max_context: i32,
    pub cost_table: *const std::ffi::c_char,
    pub progress: sol_progress,
    pub user: *mut std::ffi::c_void,
    pub prefill: *const std::ffi::c_char,
    pub costs_folder: *const std::ffi::c_char,
    pub device: *const std::ffi::c_char,
    pub costs: sol_cost_source,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct sol_model_info {
    pub size: u32,
    pub name: *const std::ffi::c_char,
    pub generator: *const std::ffi::c_char,
    pub identity: *const std::ffi::c_char,
    pub vocab_size: i32,
    pub hidden_size: i32,
    pub num_layers: i32,
    pub max_context: i32,
    pub num_actions: i32,
    pub has_policy: i32,
    pub has_losses: i32,
    pub has_tokenizer: i32,
    pub has_chat: i32,
    pub native: i32,
    pub default_schedule: *const std::ffi::c_char,
    pub cost_model: *const std::ffi::c_char,
    pub dense: *const std::ffi::c_char,
    pub mapped_bytes: u64,
    pub cost_note: *const std::ffi::c_char,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct sol_action_info {
    pub size: u32,
    pub tag: *const std::ffi::c_char,
    pub relative_cost: f64,
    pub loss: f64,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct sol_tuning {
    pub size: u32,
    pub cache_level: u32,
    pub row_bytes_ahead: u32,
    pub members: u32,
    pub copies: u32,
}
pub const SOL_ENCODE_ADD_SPECIAL: _bindgen_ty_1 = 1;
pub const SOL_ENCODE_PARSE_SPECIAL: _bindgen_ty_1 = 2;
pub type _bindgen_ty_1 = std::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct sol_message {
    pub role: *const std::ffi::c_char,
    pub content: *const std::ffi::c_char,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct sol_session {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct sol_run {
    pub size: u32,
    pub tokens: *const i32,
    pub num_tokens: usize,
    pub past: usize,
    pub action: *const std::ffi::c_char,
    pub graph: *const std::ffi::c_char,
    pub kv_pages: *const i64,
    pub channels: *const i64,
    pub num_logits: usize,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct sol_host_engine {
    pub size: u32,
    pub user: *mut std::ffi::c_void,
    pub forward: ::std::option::Option<unsafe extern "C" fn(user: *mut std::ffi::c_void, run: *const sol_run, logits: *mut f32, hidden: *mut f32) -> i32>,
    pub held: ::std::option::Option<unsafe extern "C" fn(user: *mut std::ffi::c_void, length: usize) -> usize>,
}
pub type sol_prompt_progress = ::std::option::Option<unsafe extern "C" fn(user: *mut std::ffi::c_void, done: u64, total: u64)>;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct sol_distribution {
    pub size: u32,
    pub top: i32,
    pub top_logit: f32,
    pub second_logit: f32,
    pub total: f32,
    pub moment: f32,
    pub top_probability: f64,
    pub margin: f64,
    pub entropy: f64,
    pub log_sum: f64,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct sol_rows {
    pub size: u32,
    pub num_logits: usize,
    pub logits: *mut f32,
    pub logits_length: usize,
    pub hidden: *mut f32,
    pub hidden_length: usize,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct sol_logit_bias {
    pub token: i32,
    pub bias: f32,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct sol_choice {
    pub size: u32,
    pub token: i32,
    pub step: i64,
    pub context: i64,
    pub num_actions: usize,
    pub actions: *const *const std::ffi::c_char,
    pub relative_costs: *const f64,
    pub allowed: *const u8,
    pub target: f64,
    pub allowance: f64,
    pub budget: f64,
    pub achieved_budget: f64,
    pub hidden: *const f32,
    pub hidden_size: usize,
    pub logits: *const f32,
    pub vocab_size: usize,
    pub distribution: *const sol_distribution,
}
pub type sol_choose = ::std::option::Option<unsafe extern "C" fn(user: *mut std::ffi::c_void, choice: *const sol_choice) -> i32>;
pub const SOL_MASK_NONE: sol_masked = 0;
pub const SOL_MASK_FILLED: sol_masked = 1;
pub const SOL_MASK_STOP: sol_masked = 2;
pub type sol_masked = std::ffi::c_uint;
pub type sol_mask =
    ::std::option::Option<unsafe extern "C" fn(user: *mut std::ffi::c_void, tokens: *const i32, num_tokens: usize, mask: *mut u32, num_words: usize) -> i32>;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct sol_generate_options {
    pub size: u32,
    pub max_new_tokens: i32,
    pub do_sample: i32,
    pub temperature: f64,
    pub top_k: i32,
    pub top_p: f64,
    pub min_p: f64,
    pub repetition_penalty: f64,
    pub presence_penalty: f64,
    pub frequency_penalty: f64,
    pub seed: i64,
    pub top_logprobs: i32,
    pub logit_bias: *const sol_logit_bias,
    pub num_logit_bias: usize,
    pub stop_strings: *const *const std::ffi::c_char,
    pub num_stop_strings: usize,
    pub end_tokens: *const i32,
    pub num_end_tokens: usize,
    pub budget: f64,
    pub tokens_per_second: f64,
    pub max_loss: f64,
    pub kv_density: f64,
    pub channel_density: f64,
    pub bits: f64,
    pub schedule: *const std::ffi::c_char,
    pub reuse_cache: i32,
    pub trace: *const std::ffi::c_char,
    pub replay: *const std::ffi::c_char,
    pub choose: sol_choose,
    pub choose_user: *mut std::ffi::c_void,
    pub mask: sol_mask,
    pub mask_user: *mut std::ffi::c_void,
    pub lossless: i32,
    pub lookup: i32,
}
pub const SOL_FINISH_NONE: sol_finish = 0;
pub const SOL_FINISH_STOP: sol_finish = 1;
pub const SOL_FINISH_LENGTH: sol_finish = 2;
pub type sol_finish = std::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct sol_token {
    pub size: u32,
    pub token: i32,
    pub text: *const std::ffi::c_char,
    pub text_length: usize,
    pub action: *const std::ffi::c_char,
    pub logprob: f64,
    pub cost: f64,
    pub relative_cost: f64,
    pub achieved_budget: f64,
    pub requested_budget: f64,
    pub milliseconds: f64,
    pub finish: sol_finish,
    pub top_tokens: *const i32,
    pub top_logprobs: *const f64,
    pub num_top: usize,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct sol_result {
    pub size: u32,
    pub num_tokens: i32,
    pub prompt_tokens: i32,
    pub cached_tokens: i32,
    pub schedule: *const std::ffi::c_char,
    pub cost_model: *const std::ffi::c_char,
    pub requested_budget: f64,
    pub achieved_budget: f64,
    pub expected_loss: f64,
    pub prompt_tokens_per_second: f64,
    pub tokens_per_second: f64,
    pub time_to_first_token_ms: f64,
    pub fastest_tokens_per_second: f64,
    pub floored: i32,
    pub first_difference: i32,
    pub finish: sol_finish,
    pub drafted_tokens: i64,
    pub accepted_tokens: i64,
    pub asked_budget: f64,
    pub dense_prompt: i32,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct sol_policy_run {
    pub size: u32,
    pub graph: *const std::ffi::c_char,
    pub hidden: *const f32,
    pub hidden_size: usize,
    pub scalars: *const f32,
    pub num_scalars: usize,
    pub token: i32,
    pub first: i32,
    pub previous_action: i64,
    pub step: i64,
}
pub type sol_on_token = ::std::option::Option<unsafe extern "C" fn(user: *mut std::ffi::c_void, token: *const sol_token) -> i32>;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct sol_scores {
    pub size: u32,
    pub logprobs: *mut f64,
    pub logprobs_length: usize,
    pub logits: *mut f32,
    pub logits_length: usize,
    pub hidden: *mut f32,
    pub hidden_length: usize,
    pub actions: *const *const std::ffi::c_char,
    pub num_actions: usize,
    pub costs: *const f64,
    pub schedule: *const std::ffi::c_char,
    pub achieved_budget: f64,
    pub requested_budget: f64,
    pub expected_loss: f64,
    pub floored: i32,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct sol_step {
    pub size: u32,
    pub action: *const std::ffi::c_char,
    pub context: i64,
    pub cost: f64,
    pub relative_cost: f64,
    pub achieved_budget: f64,
    pub requested_budget: f64,
    pub floored: i32,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct sol_governor_settings {
    pub size: u32,
    pub lowest_budget: f64,
    pub highest_budget: f64,
    pub tokens_per_second: f64,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct sol_governor_reading {
    pub size: u32,
    pub battery: f64,
    pub charging: i32,
    pub thermal: f64,
    pub tokens_per_second: f64,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct sol_governor_state {
    pub size: u32,
    pub budget: f64,
    pub reserved: [f64; 7usize],
}
extern "C" {
    pub fn sol_interface_version() -> u32;
    pub fn sol_version() -> *const std::ffi::c_char;
    pub fn sol_error_code(error: *const sol_error) -> sol_code;
    pub fn sol_error_message(error: *const sol_error) -> *const std::ffi::c_char;
    pub fn sol_error_release(error: *mut sol_error);
    pub fn sol_runtime_options_init(options: *mut sol_runtime_options, size: u32);
    pub fn sol_runtime_create(options: *const sol_runtime_options, runtime: *mut *mut sol_runtime) -> *mut sol_error;
    pub fn sol_runtime_release(runtime: *mut sol_runtime);
    pub fn sol_runtime_ort_version(runtime: *const sol_runtime) -> *const std::ffi::c_char;
    pub fn sol_runtime_device(runtime: *const sol_runtime) -> *const std::ffi::c_char;
    pub fn sol_usable_cores() -> i32;
    pub fn sol_model_options_init(options: *mut sol_model_options, size: u32);
    pub fn sol_model_load(
        runtime: *mut sol_runtime,
        folder: *const std::ffi::c_char,
        options: *const sol_model_options,
        model: *mut *mut sol_model,
    ) -> *mut sol_error;
    pub fn sol_model_release(model: *mut sol_model);
    pub fn sol_model_get_info(model: *const sol_model, info: *mut sol_model_info) -> *mut sol_error;
    pub fn sol_model_get_action(model: *const sol_model, index: i32, info: *mut sol_action_info) -> *mut sol_error;
    pub fn sol_model_measure_costs(model: *mut sol_model, file: *const std::ffi::c_char) -> *mut sol_error;
    pub fn sol_model_set_costs(model: *mut sol_model, table: *const std::ffi::c_char) -> *mut sol_error;
    pub fn sol_tuning_get(tuning: *mut sol_tuning) -> *mut sol_error;
    pub fn sol_tuning_set(tuning: *const sol_tuning) -> *mut sol_error;
    pub fn sol_model_encode(
        model: *const sol_model,
        text: *const std::ffi::c_char,
        length: usize,
        flags: u32,
        tokens: *mut i32,
        capacity: usize,
        count: *mut usize,
    ) -> *mut sol_error;
    pub fn sol_model_encode_rendered(
        model: *const sol_model,
        text: *const std::ffi::c_char,
        length: usize,
        user: *const usize,
        num_user: usize,
        tokens: *mut i32,
        capacity: usize,
        count: *mut usize,
    ) -> *mut sol_error;
    pub fn sol_model_decode(
        model: *const sol_model,
        tokens: *const i32,
        count: usize,
        skip_special: i32,
        text: *mut std::ffi::c_char,
        capacity: usize,
        length: *mut usize,
    ) -> *mut sol_error;
    pub fn sol_model_encode_chat(
        model: *const sol_model,
        messages: *const sol_message,
        num_messages: usize,
        tokens: *mut i32,
        capacity: usize,
        count: *mut usize,
    ) -> *mut sol_error;
    pub fn sol_session_create(model: *mut sol_model, session: *mut *mut sol_session) -> *mut sol_error;
    pub fn sol_session_create_on(model: *mut sol_model, engine: *const sol_host_engine, session: *mut *mut sol_session) -> *mut sol_error;
    pub fn sol_session_release(session: *mut sol_session);
    pub fn sol_session_tokens(session: *const sol_session, tokens: *mut i32, capacity: usize, count: *mut usize) -> *mut sol_error;
    pub fn sol_session_dense_tokens(session: *const sol_session, count: *mut usize) -> *mut sol_error;
    pub fn sol_session_rewind(session: *mut sol_session, length: usize) -> *mut sol_error;
    pub fn sol_session_save(session: *mut sol_session, file: *const std::ffi::c_char) -> *mut sol_error;
    pub fn sol_session_restore(session: *mut sol_session, file: *const std::ffi::c_char) -> *mut sol_error;
    pub fn sol_session_private_bytes(session: *const sol_session) -> u64;
    pub fn sol_session_set_progress(session: *mut sol_session, progress: sol_prompt_progress, user: *mut std::ffi::c_void) -> *mut sol_error;
    pub fn sol_session_forward(
        session: *mut sol_session,
        tokens: *const i32,
        num_tokens: usize,
        action: *const std::ffi::c_char,
        rows: *const sol_rows,
        seen: *mut sol_distribution,
    ) -> *mut sol_error;
    pub fn sol_session_set_active_channels(
        session: *mut sol_session,
        variant: *const std::ffi::c_char,
        up: *const i32,
        down: *const i32,
        qkv: *const i32,
        o: *const i32,
        num_layers: usize,
    ) -> *mut sol_error;
    pub fn sol_generate_options_init(options: *mut sol_generate_options, size: u32);
    pub fn sol_session_start(session: *mut sol_session, prompt: *const i32, num_tokens: usize, options: *const sol_generate_options) -> *mut sol_error;
    pub fn sol_session_read_prompt(session: *mut sol_session, most: usize, left: *mut usize) -> *mut sol_error;
    pub fn sol_session_next(session: *mut sol_session, token: *mut sol_token) -> *mut sol_error;
    pub fn sol_batch_next(sessions: *const *mut sol_session, count: usize, tokens: *const *mut sol_token, errors: *mut *mut sol_error) -> *mut sol_error;
    pub fn sol_session_begin_step(session: *mut sol_session, run: *mut sol_run) -> *mut sol_error;
    pub fn sol_session_end_step(
        session: *mut sol_session,
        logits: *const f32,
        num_logits: usize,
        hidden: *const f32,
        num_hidden: usize,
        token: *mut sol_token,
    ) -> *mut sol_error;
    pub fn sol_session_begin_policy(session: *mut sol_session, run: *mut sol_policy_run) -> *mut sol_error;
    pub fn sol_session_end_policy(session: *mut sol_session, logits: *const f32, num_logits: usize) -> *mut sol_error;
    pub fn sol_session_stop(session: *mut sol_session) -> *mut sol_error;
    pub fn sol_session_result(session: *const sol_session, result: *mut sol_result) -> *mut sol_error;
    pub fn sol_session_generate(
        session: *mut sol_session,
        prompt: *const i32,
        num_tokens: usize,
        options: *const sol_generate_options,
        on_token: sol_on_token,
        user: *mut std::ffi::c_void,
        result: *mut sol_result,
    ) -> *mut sol_error;
    pub fn sol_session_score(
        session: *mut sol_session,
        tokens: *const i32,
        num_tokens: usize,
        context: usize,
        options: *const sol_generate_options,
        scores: *mut sol_scores,
    ) -> *mut sol_error;
    pub fn sol_session_plan(session: *mut sol_session, options: *const sol_generate_options) -> *mut sol_error;
    pub fn sol_session_step(session: *mut sol_session, token: i32, rows: *const sol_rows, seen: *mut sol_distribution, step: *mut sol_step) -> *mut sol_error;
    pub fn sol_session_resume(
        session: *mut sol_session,
        length: usize,
        logits: *const f32,
        num_logits: usize,
        hidden: *const f32,
        num_hidden: usize,
    ) -> *mut sol_error;
    pub fn sol_session_cancel(session: *mut sol_session);
    pub fn sol_session_set_budget(session: *mut sol_session, budget: f64) -> *mut sol_error;
    pub fn sol_session_set_tokens_per_second(session: *mut sol_session, rate: f64) -> *mut sol_error;
    pub fn sol_session_busy(session: *const sol_session) -> i32;
    pub fn sol_governor_settings_init(settings: *mut sol_governor_settings, size: u32);
    pub fn sol_governor_reading_init(reading: *mut sol_governor_reading, size: u32);
    pub fn sol_governor_begin(settings: *const sol_governor_settings, state: *mut sol_governor_state) -> *mut sol_error;
    pub fn sol_governor_step(settings: *const sol_governor_settings, reading: *const sol_governor_reading, state: *mut sol_governor_state) -> *mut sol_error;
}
