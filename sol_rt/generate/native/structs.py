"""The structs of sol_rt.h, version 1 of its interface."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_double, c_float, c_int, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p


class RuntimeOptions(ctypes.Structure):
    """`sol_runtime_options`."""

    _fields_ = (
        ("size", c_uint32),
        ("ort_api_base", c_void_p),
        ("ort_library", c_char_p),
        ("threads", c_int32),
        ("native_operators", c_int32),
        ("spin", c_int32),
    )


class ModelOptions(ctypes.Structure):
    """`sol_model_options`."""

    _fields_ = (
        ("size", c_uint32),
        ("verify", c_int),
        ("max_context", c_int32),
        ("cost_table", c_char_p),
        ("progress", c_void_p),
        ("user", c_void_p),
        ("prefill", c_char_p),
    )


class ModelInfo(ctypes.Structure):
    """`sol_model_info`."""

    _fields_ = (
        ("size", c_uint32),
        ("name", c_char_p),
        ("generator", c_char_p),
        ("identity", c_char_p),
        ("vocab_size", c_int32),
        ("hidden_size", c_int32),
        ("num_layers", c_int32),
        ("max_context", c_int32),
        ("num_actions", c_int32),
        ("has_policy", c_int32),
        ("has_losses", c_int32),
        ("has_tokenizer", c_int32),
        ("has_chat", c_int32),
        ("native", c_int32),
        ("default_schedule", c_char_p),
        ("cost_model", c_char_p),
        ("dense", c_char_p),
        ("mapped_bytes", c_uint64),
    )


class Message(ctypes.Structure):
    """`sol_message`."""

    _fields_ = (("role", c_char_p), ("content", c_char_p))


class LogitBias(ctypes.Structure):
    """`sol_logit_bias`."""

    _fields_ = (("token", c_int32), ("bias", c_float))


class GenerateOptions(ctypes.Structure):
    """`sol_generate_options`."""

    _fields_ = (
        ("size", c_uint32),
        ("max_new_tokens", c_int32),
        ("do_sample", c_int32),
        ("temperature", c_double),
        ("top_k", c_int32),
        ("top_p", c_double),
        ("min_p", c_double),
        ("repetition_penalty", c_double),
        ("presence_penalty", c_double),
        ("frequency_penalty", c_double),
        ("seed", c_int64),
        ("top_logprobs", c_int32),
        ("logit_bias", POINTER(LogitBias)),
        ("num_logit_bias", c_size_t),
        ("stop_strings", POINTER(c_char_p)),
        ("num_stop_strings", c_size_t),
        ("end_tokens", POINTER(c_int32)),
        ("num_end_tokens", c_size_t),
        ("budget", c_double),
        ("tokens_per_second", c_double),
        ("max_loss", c_double),
        ("kv_density", c_double),
        ("channel_density", c_double),
        ("bits", c_double),
        ("schedule", c_char_p),
        ("reuse_cache", c_int32),
        ("trace", c_char_p),
        ("replay", c_char_p),
    )


class Token(ctypes.Structure):
    """`sol_token`."""

    _fields_ = (
        ("size", c_uint32),
        ("token", c_int32),
        ("text", c_void_p),
        ("text_length", c_size_t),
        ("action", c_char_p),
        ("logprob", c_double),
        ("cost", c_double),
        ("relative_cost", c_double),
        ("achieved_budget", c_double),
        ("requested_budget", c_double),
        ("milliseconds", c_double),
        ("finish", c_int),
        ("top_tokens", POINTER(c_int32)),
        ("top_logprobs", POINTER(c_double)),
        ("num_top", c_size_t),
    )


class Result(ctypes.Structure):
    """`sol_result`."""

    _fields_ = (
        ("size", c_uint32),
        ("num_tokens", c_int32),
        ("prompt_tokens", c_int32),
        ("cached_tokens", c_int32),
        ("schedule", c_char_p),
        ("cost_model", c_char_p),
        ("requested_budget", c_double),
        ("achieved_budget", c_double),
        ("expected_loss", c_double),
        ("prompt_tokens_per_second", c_double),
        ("tokens_per_second", c_double),
        ("time_to_first_token_ms", c_double),
        ("fastest_tokens_per_second", c_double),
        ("floored", c_int32),
        ("first_difference", c_int32),
        ("finish", c_int),
    )
