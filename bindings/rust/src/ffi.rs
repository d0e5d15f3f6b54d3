//! `sol_rt.h` in Rust. Fields and functions have the header's names and order, and the header says what they mean.
#![allow(missing_docs)]
#![cfg_attr(rustfmt, rustfmt_skip)]

use std::ffi::{c_char, c_void};

macro_rules! handles {
    ($($name:ident),*) => { $(#[repr(C)] #[derive(Debug)] pub struct $name { _private: [u8; 0] })* };
}
handles!(sol_error, sol_runtime, sol_model, sol_session);

#[repr(C)]
pub struct sol_runtime_options {
    pub size: u32, pub ort_api_base: *const c_void, pub ort_library: *const c_char, pub threads: i32, pub native_operators: i32, pub spin: i32,
}

pub type sol_progress = unsafe extern "C" fn(user: *mut c_void, what: *const c_char, done: u64, total: u64) -> i32;

#[repr(C)]
pub struct sol_model_options {
    pub size: u32, pub verify: i32, pub max_context: i32, pub cost_table: *const c_char, pub progress: Option<sol_progress>, pub user: *mut c_void,
    pub prefill: *const c_char,
}

#[repr(C)]
pub struct sol_model_info {
    pub size: u32, pub name: *const c_char, pub generator: *const c_char, pub identity: *const c_char, pub vocab_size: i32, pub hidden_size: i32,
    pub num_layers: i32, pub max_context: i32, pub num_actions: i32, pub has_policy: i32, pub has_losses: i32, pub has_tokenizer: i32, pub has_chat: i32,
    pub native: i32, pub default_schedule: *const c_char, pub cost_model: *const c_char, pub dense: *const c_char, pub mapped_bytes: u64,
}

#[repr(C)]
pub struct sol_action_info {
    pub size: u32, pub tag: *const c_char, pub relative_cost: f64, pub loss: f64,
}

#[repr(C)]
pub struct sol_message {
    pub role: *const c_char, pub content: *const c_char,
}

#[repr(C)]
pub struct sol_logit_bias {
    pub token: i32, pub bias: f32,
}

#[repr(C)]
pub struct sol_generate_options {
    pub size: u32, pub max_new_tokens: i32, pub do_sample: i32, pub temperature: f64, pub top_k: i32, pub top_p: f64, pub min_p: f64,
    pub repetition_penalty: f64, pub presence_penalty: f64, pub frequency_penalty: f64, pub seed: i64, pub top_logprobs: i32,
    pub logit_bias: *const sol_logit_bias, pub num_logit_bias: usize, pub stop_strings: *const *const c_char, pub num_stop_strings: usize,
    pub end_tokens: *const i32, pub num_end_tokens: usize, pub budget: f64, pub tokens_per_second: f64, pub max_loss: f64, pub kv_density: f64,
    pub channel_density: f64, pub bits: f64, pub schedule: *const c_char, pub reuse_cache: i32, pub trace: *const c_char, pub replay: *const c_char,
}

#[repr(C)]
pub struct sol_token {
    pub size: u32, pub token: i32, pub text: *const c_char, pub text_length: usize, pub action: *const c_char, pub logprob: f64, pub cost: f64,
    pub relative_cost: f64, pub achieved_budget: f64, pub requested_budget: f64, pub milliseconds: f64, pub finish: i32, pub top_tokens: *const i32,
    pub top_logprobs: *const f64, pub num_top: usize,
}

#[repr(C)]
pub struct sol_result {
    pub size: u32, pub num_tokens: i32, pub prompt_tokens: i32, pub cached_tokens: i32, pub schedule: *const c_char, pub cost_model: *const c_char,
    pub requested_budget: f64, pub achieved_budget: f64, pub expected_loss: f64, pub prompt_tokens_per_second: f64, pub tokens_per_second: f64,
    pub time_to_first_token_ms: f64, pub fastest_tokens_per_second: f64, pub floored: i32, pub first_difference: i32, pub finish: i32,
}

#[repr(C)]
pub struct sol_governor_settings {
    pub size: u32, pub lowest_budget: f64, pub highest_budget: f64, pub tokens_per_second: f64,
}

#[repr(C)]
pub struct sol_governor_reading {
    pub size: u32, pub battery: f64, pub charging: i32, pub thermal: f64, pub tokens_per_second: f64,
}

#[repr(C)]
pub struct sol_governor_state {
    pub size: u32, pub budget: f64, pub reserved: [f64; 7],
}

extern "C" {
    pub fn sol_version() -> *const c_char;
    pub fn sol_error_code(error: *const sol_error) -> i32;
    pub fn sol_error_message(error: *const sol_error) -> *const c_char;
    pub fn sol_error_release(error: *mut sol_error);
    pub fn sol_runtime_options_init(options: *mut sol_runtime_options, size: u32);
    pub fn sol_runtime_create(options: *const sol_runtime_options, runtime: *mut *mut sol_runtime) -> *mut sol_error;
    pub fn sol_runtime_release(runtime: *mut sol_runtime);
    pub fn sol_runtime_ort_version(runtime: *const sol_runtime) -> *const c_char;
    pub fn sol_model_options_init(options: *mut sol_model_options, size: u32);
    pub fn sol_model_load(runtime: *mut sol_runtime, folder: *const c_char, options: *const sol_model_options, model: *mut *mut sol_model) -> *mut sol_error;
    pub fn sol_model_release(model: *mut sol_model);
    pub fn sol_model_get_info(model: *const sol_model, info: *mut sol_model_info) -> *mut sol_error;
    pub fn sol_model_get_action(model: *const sol_model, index: i32, info: *mut sol_action_info) -> *mut sol_error;
    pub fn sol_model_measure_costs(model: *mut sol_model, file: *const c_char) -> *mut sol_error;
    pub fn sol_model_encode(model: *const sol_model, text: *const c_char, length: usize, flags: u32, tokens: *mut i32, capacity: usize,
        count: *mut usize) -> *mut sol_error;
    pub fn sol_model_decode(model: *const sol_model, tokens: *const i32, count: usize, skip_special: i32, text: *mut u8, capacity: usize,
        length: *mut usize) -> *mut sol_error;
    pub fn sol_model_encode_chat(model: *const sol_model, messages: *const sol_message, num_messages: usize, tokens: *mut i32, capacity: usize,
        count: *mut usize) -> *mut sol_error;
    pub fn sol_session_create(model: *mut sol_model, session: *mut *mut sol_session) -> *mut sol_error;
    pub fn sol_session_release(session: *mut sol_session);
    pub fn sol_session_tokens(session: *const sol_session, tokens: *mut i32, capacity: usize, count: *mut usize) -> *mut sol_error;
    pub fn sol_session_rewind(session: *mut sol_session, length: usize) -> *mut sol_error;
    pub fn sol_session_save(session: *mut sol_session, file: *const c_char) -> *mut sol_error;
    pub fn sol_session_restore(session: *mut sol_session, file: *const c_char) -> *mut sol_error;
    pub fn sol_session_private_bytes(session: *const sol_session) -> u64;
    pub fn sol_generate_options_init(options: *mut sol_generate_options, size: u32);
    pub fn sol_session_start(session: *mut sol_session, prompt: *const i32, num_tokens: usize, options: *const sol_generate_options) -> *mut sol_error;
    pub fn sol_session_next(session: *mut sol_session, token: *mut sol_token) -> *mut sol_error;
    pub fn sol_session_stop(session: *mut sol_session) -> *mut sol_error;
    pub fn sol_session_result(session: *const sol_session, result: *mut sol_result) -> *mut sol_error;
    pub fn sol_session_cancel(session: *mut sol_session);
    pub fn sol_session_set_budget(session: *mut sol_session, budget: f64) -> *mut sol_error;
    pub fn sol_session_set_tokens_per_second(session: *mut sol_session, rate: f64) -> *mut sol_error;
    pub fn sol_session_busy(session: *const sol_session) -> i32;
    pub fn sol_governor_settings_init(settings: *mut sol_governor_settings, size: u32);
    pub fn sol_governor_reading_init(reading: *mut sol_governor_reading, size: u32);
    pub fn sol_governor_begin(settings: *const sol_governor_settings, state: *mut sol_governor_state) -> *mut sol_error;
    pub fn sol_governor_step(settings: *const sol_governor_settings, reading: *const sol_governor_reading, state: *mut sol_governor_state) -> *mut sol_error;
}
