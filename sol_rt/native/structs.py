"""The structs and callbacks of sol_rt.h, version 2 of its interface, and of sol_plan.h."""

from __future__ import annotations

import ctypes
from ctypes import (
    CFUNCTYPE,
    POINTER,
    c_char_p,
    c_double,
    c_float,
    c_int,
    c_int32,
    c_int64,
    c_size_t,
    c_uint8,
    c_uint32,
    c_uint64,
    c_void_p,
)

COSTS_DEFAULT, COSTS_BYTES, COSTS_PROFILED, COSTS_MEASURED = range(4)  # `sol_cost_source`
Progress = CFUNCTYPE(c_int32, c_void_p, c_char_p, c_uint64, c_uint64)  # `sol_progress`


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
        ("costs_folder", c_char_p),
        ("device", c_char_p),
        ("costs", c_int),
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
        ("cost_note", c_char_p),
    )


class CostTable(ctypes.Structure):
    """`sol_cost_table`."""

    _fields_ = (("size", c_uint32), ("text", c_char_p), ("file", c_char_p), ("note", c_char_p))


class Tuned(ctypes.Structure):
    """`sol_tuned`."""

    _fields_ = (
        ("size", c_uint32),
        ("steady", c_int32),
        ("gain", c_double),
        ("gain_of_copies", c_double),
        ("dense_ms", c_double),
    )


class Tuning(ctypes.Structure):
    """`sol_tuning`."""

    _fields_ = (
        ("size", c_uint32),
        ("cache_level", c_uint32),
        ("row_bytes_ahead", c_uint32),
        ("members", c_uint32),
        ("copies", c_uint32),
    )


class Message(ctypes.Structure):
    """`sol_message`."""

    _fields_ = (("role", c_char_p), ("content", c_char_p))


class LogitBias(ctypes.Structure):
    """`sol_logit_bias`."""

    _fields_ = (("token", c_int32), ("bias", c_float))


class Distribution(ctypes.Structure):
    """`sol_distribution`."""

    _fields_ = (
        ("size", c_uint32),
        ("top", c_int32),
        ("top_logit", c_float),
        ("second_logit", c_float),
        ("total", c_float),
        ("moment", c_float),
        ("top_probability", c_double),
        ("margin", c_double),
        ("entropy", c_double),
        ("log_sum", c_double),
    )


class Rows(ctypes.Structure):
    """`sol_rows`."""

    _fields_ = (
        ("size", c_uint32),
        ("num_logits", c_size_t),
        ("logits", c_void_p),
        ("logits_length", c_size_t),
        ("hidden", c_void_p),
        ("hidden_length", c_size_t),
    )


class Choice(ctypes.Structure):
    """`sol_choice`."""

    _fields_ = (
        ("size", c_uint32),
        ("token", c_int32),
        ("step", c_int64),
        ("context", c_int64),
        ("num_actions", c_size_t),
        ("actions", POINTER(c_char_p)),
        ("relative_costs", POINTER(c_double)),
        ("allowed", POINTER(c_uint8)),
        ("target", c_double),
        ("allowance", c_double),
        ("budget", c_double),
        ("achieved_budget", c_double),
        ("hidden", POINTER(c_float)),
        ("hidden_size", c_size_t),
        ("logits", POINTER(c_float)),
        ("vocab_size", c_size_t),
        ("distribution", POINTER(Distribution)),
    )


Choose = CFUNCTYPE(c_int32, c_void_p, POINTER(Choice))
"""`sol_choose`."""

Mask = CFUNCTYPE(c_int32, c_void_p, POINTER(c_int32), c_size_t, c_void_p, c_size_t)
"""`sol_mask`."""


class Scores(ctypes.Structure):
    """`sol_scores`."""

    _fields_ = (
        ("size", c_uint32),
        ("logprobs", c_void_p),
        ("logprobs_length", c_size_t),
        ("logits", c_void_p),
        ("logits_length", c_size_t),
        ("hidden", c_void_p),
        ("hidden_length", c_size_t),
        ("actions", POINTER(c_char_p)),
        ("num_actions", c_size_t),
        ("costs", POINTER(c_double)),
        ("schedule", c_char_p),
        ("achieved_budget", c_double),
        ("requested_budget", c_double),
        ("expected_loss", c_double),
        ("floored", c_int32),
    )


class Step(ctypes.Structure):
    """`sol_step`."""

    _fields_ = (
        ("size", c_uint32),
        ("action", c_char_p),
        ("context", c_int64),
        ("cost", c_double),
        ("relative_cost", c_double),
        ("achieved_budget", c_double),
        ("requested_budget", c_double),
        ("floored", c_int32),
    )


class Run(ctypes.Structure):
    """`sol_run`."""

    _fields_ = (
        ("size", c_uint32),
        ("tokens", POINTER(c_int32)),
        ("num_tokens", c_size_t),
        ("past", c_size_t),
        ("action", c_char_p),
        ("graph", c_char_p),
        ("kv_pages", POINTER(c_int64)),
        ("channels", POINTER(c_int64)),
        ("num_logits", c_size_t),
    )


RunForward = CFUNCTYPE(c_int32, c_void_p, POINTER(Run), POINTER(c_float), POINTER(c_float))
"""`sol_host_engine.forward`."""
HeldTokens = CFUNCTYPE(c_size_t, c_void_p, c_size_t)
"""`sol_host_engine.held`."""
PromptProgress = CFUNCTYPE(None, c_void_p, c_uint64, c_uint64)
"""`sol_prompt_progress`."""


class HostEngine(ctypes.Structure):
    """`sol_host_engine`."""

    _fields_ = (("size", c_uint32), ("user", c_void_p), ("forward", RunForward), ("held", HeldTokens))


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
        ("choose", Choose),
        ("choose_user", c_void_p),
        ("mask", Mask),
        ("mask_user", c_void_p),
        ("lossless", c_int32),
        ("lookup", c_int32),
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
        ("drafted_tokens", c_int64),
        ("accepted_tokens", c_int64),
        ("asked_budget", c_double),
        ("dense_prompt", c_int32),
    )


class GovernorSettings(ctypes.Structure):
    """`sol_governor_settings`."""

    _fields_ = (
        ("size", c_uint32),
        ("lowest_budget", c_double),
        ("highest_budget", c_double),
        ("tokens_per_second", c_double),
    )


class GovernorReading(ctypes.Structure):
    """`sol_governor_reading`."""

    _fields_ = (
        ("size", c_uint32),
        ("battery", c_double),
        ("charging", c_int32),
        ("thermal", c_double),
        ("tokens_per_second", c_double),
    )


class GovernorState(ctypes.Structure):
    """`sol_governor_state`."""

    _fields_ = (("size", c_uint32), ("budget", c_double), ("reserved", c_double * 7))


class Profile(ctypes.Structure):
    """`sol_profile`."""

    _fields_ = (
        ("size", c_uint32),
        ("repeats", c_int32),
        ("contexts", POINTER(c_int64)),
        ("num_contexts", c_size_t),
        ("seconds", c_double),
        ("device", c_char_p),
        ("progress", Progress),
        ("user", c_void_p),
        ("actions", POINTER(c_char_p)),
        ("num_actions", c_size_t),
        ("ms", POINTER(c_double)),
        ("num_measured", c_size_t),
        ("table", c_char_p),
    )


class PolicyInputs(ctypes.Structure):
    """`sol_policy_inputs`."""

    _fields_ = (
        ("size", c_uint32),
        ("token", c_int32),
        ("hidden", POINTER(c_float)),
        ("hidden_size", c_size_t),
        ("scalars", POINTER(c_float)),
        ("num_scalars", c_size_t),
        ("previous_action", c_int64),
        ("step", c_int64),
        ("fresh", c_int32),
    )


Decide = CFUNCTYPE(c_int32, c_void_p, POINTER(PolicyInputs), POINTER(c_float))
"""`sol_decide`."""


class PlanOptions(ctypes.Structure):
    """`sol_plan_options`."""

    _fields_ = (
        ("size", c_uint32),
        ("options", POINTER(GenerateOptions)),
        ("actions", POINTER(c_char_p)),
        ("num_actions", c_size_t),
        ("decide", Decide),
        ("decide_user", c_void_p),
    )


class PlanSeen(ctypes.Structure):
    """`sol_plan_seen`."""

    _fields_ = (
        ("size", c_uint32),
        ("token", c_int32),
        ("step", c_int64),
        ("context", c_int64),
        ("hidden", c_void_p),
        ("hidden_size", c_size_t),
        ("logits", c_void_p),
        ("num_logits", c_size_t),
    )
