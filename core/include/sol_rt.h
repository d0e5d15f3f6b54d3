// The C interface of sol_rt's native core: a self-optimizing language model inside a host program.
//
// A host loads a bundle (`sol_model`), opens a session on it (`sol_session`: one KV cache, one conversation) and takes tokens one by one. Before every
// decode step the core picks how much to compute, so that the budget is held; the host may move the budget between tokens.
//
// Rules that hold for every function:
//   - Functions that can fail return a `sol_error*`: NULL is success. The host frees an error with `sol_error_release`.
//   - No C++ exception and no signal crosses this border. The system's SIGBUS for a weights file that is cut off while it is mapped is beyond this
//     library: replace files of a bundle by renaming.
//   - Strings are UTF-8. `const char*` arguments end in NUL unless a length stands beside them. Pointers that a function returns belong to the handle
//     that it was asked of, and live as long as that handle, unless said otherwise.
//   - Structs begin with `size`: the host sets it to sizeof of the struct that it was compiled with, so that an older host works with a newer library.
//     `..._init(&struct, sizeof struct)` does that and sets every other field to its default. New fields come at the end, and never where an older
//     struct ended in padding. `sol_message` and `sol_logit_bias`, of which there are arrays, never change.
//   - Arrays that the host passes are read during the call only.
//
// Threads: a `sol_runtime` and a `sol_model` may be used by any number of threads at once. A `sol_session` is used by one thread at a time, with the
// exceptions named at `sol_session_cancel`, `sol_session_set_budget`, `sol_session_set_tokens_per_second` and `sol_session_busy`; a second thread gets
// SOL_ERROR_BUSY. Sessions of one model run at the same time and share the weights' memory.
//
// Lifetime: handles count references to what they need. A host may release a model before its sessions, and a runtime before its models.
#ifndef SOL_RT_H_
#define SOL_RT_H_

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#if defined(SOL_RT_BUILD)
#define SOL_RT_API __declspec(dllexport)
#elif defined(SOL_RT_STATIC)
#define SOL_RT_API
#else
#define SOL_RT_API __declspec(dllimport)
#endif
#else
#define SOL_RT_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

// Of this header. It grows when functions or fields are added; what is there stays as it is.
#define SOL_RT_INTERFACE_VERSION 2

// Interface version of the library that is loaded, and its release, as "0.1.0".
SOL_RT_API uint32_t sol_interface_version(void);
SOL_RT_API const char* sol_version(void);

// ---- Errors ---------------------------------------------------------------------------------------------------------------------------------------

typedef enum sol_code {
  SOL_OK = 0,
  SOL_ERROR_USAGE = 1,      // the call is wrong: a value out of range, contradictory options, a NULL handle
  SOL_ERROR_BUNDLE = 2,     // the bundle, or a saved session, is missing, truncated, foreign or inconsistent
  SOL_ERROR_RUNTIME = 3,    // ONNX Runtime is missing, too old, or failed
  SOL_ERROR_CONTEXT = 4,    // prompt or text does not fit the context, or the KV cache does not fit the memory
  SOL_ERROR_NUMERIC = 5,    // the model gave numbers that are not finite
  SOL_ERROR_BUSY = 6,       // another thread is using the session
  SOL_ERROR_CANCELLED = 7,  // `sol_session_cancel` ended the call
  SOL_ERROR_WRITE = 8,      // a file cannot be written: the disk is full, or the system refuses; what was there stays as it was
  SOL_ERROR_MEMORY = 9,     // out of memory
  SOL_ERROR_TEXT = 10,      // not valid UTF-8, or the bundle has no tokenizer or no chat segments that this core can use
  SOL_ERROR_HOST = 11,      // a callback of the host asked to stop with an error
  SOL_ERROR_INTERNAL = 99   // a fault of this library
} sol_code;

typedef struct sol_error sol_error;

SOL_RT_API sol_code sol_error_code(const sol_error* error);        // SOL_OK for NULL
SOL_RT_API const char* sol_error_message(const sol_error* error);  // one line, what, where, got, expected, next step; "" for NULL
SOL_RT_API void sol_error_release(sol_error* error);               // takes NULL, too

// ---- Runtime: ONNX Runtime as the host has it -----------------------------------------------------------------------------------------------------

typedef struct sol_runtime sol_runtime;

typedef struct sol_runtime_options {
  uint32_t size;
  const void* ort_api_base;      // `const OrtApiBase*` of the ONNX Runtime that the host has loaded; NULL to open `ort_library`
  const char* ort_library;       // path or name of ONNX Runtime's shared library, for dlopen; NULL for the system's usual name
  int32_t threads;               // threads of the process-wide pool of ONNX Runtime; 0 for as many as help (docs/guide/embedding.md, Threads)
  int32_t native_operators;      // 1: register the operators of this library; 0: run the function bodies in the graphs
  int32_t spin;                  // 1: waiting threads of the pool spin, as is ONNX Runtime's default; 0: they sleep, which saves battery
} sol_runtime_options;

SOL_RT_API void sol_runtime_options_init(sol_runtime_options* options, uint32_t size);
// Opens ONNX Runtime. Sets the environment variable ORT_DISABLE_TELEMETRY to 1, unless it has a value. `options` may be NULL.
SOL_RT_API sol_error* sol_runtime_create(const sol_runtime_options* options, sol_runtime** runtime);
SOL_RT_API void sol_runtime_release(sol_runtime* runtime);
SOL_RT_API const char* sol_runtime_ort_version(const sol_runtime* runtime);  // as "1.23.0"
SOL_RT_API const char* sol_runtime_device(const sol_runtime* runtime);       // processor, threads and libraries: what measured costs depend on
SOL_RT_API int32_t sol_usable_cores(void);                                   // threads of a runtime that names no number

// ---- Model ----------------------------------------------------------------------------------------------------------------------------------------

typedef struct sol_model sol_model;

typedef enum sol_verify {
  SOL_VERIFY_NONE = 0,   // compare no hashes
  SOL_VERIFY_SMALL = 1,  // of every file but the weights: the default
  SOL_VERIFY_ALL = 2     // of the weights, too: about a second a gigabyte
} sol_verify;

// Called while a long call goes on. Returning anything but 0 ends the call with SOL_ERROR_HOST.
typedef int32_t (*sol_progress)(void* user, const char* what, uint64_t done, uint64_t total);

typedef enum sol_cost_source {
  SOL_COSTS_DEFAULT = 0,   // $SOL_RT_COSTS: `bytes`, `profiled` or `measured`; measured where that is not set
  SOL_COSTS_BYTES = 1,     // bytes that a step reads: alike on every device
  SOL_COSTS_PROFILED = 2,  // milliseconds where `sol-rt profile` measured this bundle on this device, else bytes
  SOL_COSTS_MEASURED = 3   // milliseconds; where there is no table the load measures one, in 2 to 6 s, and keeps it
} sol_cost_source;

typedef struct sol_model_options {
  uint32_t size;
  sol_verify verify;
  int32_t max_context;     // a cap in tokens; 0, or more than the model's own context, for none
  const char* cost_table;  // a file that `sol-rt profile` or `sol_model_measure_costs` wrote on this device; NULL: as `costs` says
  sol_progress progress;   // NULL for none
  void* user;              // given to `progress`
  const char* prefill;     // key of the variant that runs prompts, as "s100-q4"; NULL: the dial chooses where its loss is kept, else dense
  const char* costs_folder;  // where tables are kept; NULL: `costs` in $SOL_RT_HOME, else in sol_rt's folder of the user's data. Android has none: name one
  const char* device;        // of engines of the host's: what runs the model. Its tables are read, nothing is measured; NULL: the runtime's
  sol_cost_source costs;     // a budget is a share of these
} sol_model_options;

typedef struct sol_model_info {
  uint32_t size;
  const char* name;
  const char* generator;         // the exporter, as "sol_rt 0.1.0"
  const char* identity;          // sha256 of sol_config.json, lower-case hex: it identifies the whole bundle
  int32_t vocab_size;
  int32_t hidden_size;
  int32_t num_layers;
  int32_t max_context;           // tokens, the cap included
  int32_t num_actions;           // of the action set
  int32_t has_policy;
  int32_t has_losses;            // whether the export measured what actions lose: `hull` and `max_loss` need it
  int32_t has_tokenizer;         // whether this core reads the bundle's tokenizer.json
  int32_t has_chat;              // whether the bundle has chat segments; if not, the host renders the template
  int32_t native;                // whether native operators run
  const char* default_schedule;  // of runs that ask for nothing: `sol`, `hull` or `uniform`
  const char* cost_model;        // `bytes` or `measured`
  const char* dense;             // tag of the dense action
  uint64_t mapped_bytes;         // size of the weights file: shared, and the system may drop it from memory
  const char* cost_note;         // a line about costs of the load for the user: measured just now, or why a table was not used; mostly empty
} sol_model_info;

typedef struct sol_action_info {
  uint32_t size;
  const char* tag;      // as "k030-s050-q4"
  double relative_cost;  // at a context of 512 tokens, in dense steps
  double loss;           // nats a token over dense; NaN if not measured
} sol_action_info;

SOL_RT_API void sol_model_options_init(sol_model_options* options, uint32_t size);
// Without a runtime (NULL) all sessions are on engines of the host's (`sol_session_create_on`). Then only sol_config.json and the files that the core itself
// reads need to be in the folder, if the config lists them: tokenizer.json, chat_segments.json and generation_config.json. Costs are bytes unless `cost_table`
// or `device` is given. A table of the folder that cannot be read is measured anew; one that cannot be kept serves this load. `cost_note` says so.
SOL_RT_API sol_error* sol_model_load(sol_runtime* runtime, const char* folder, const sol_model_options* options, sol_model** model);
SOL_RT_API void sol_model_release(sol_model* model);
SOL_RT_API sol_error* sol_model_get_info(const sol_model* model, sol_model_info* info);  // `info->size` is set by the host
SOL_RT_API sol_error* sol_model_get_action(const sol_model* model, int32_t index, sol_action_info* info);

// Measures costs anew, as a first load does: tries settings of the native operators, which change no result, and times every action. The settings hold for
// all models of the process at once, the costs from the next generation on. Writes both to `file` (NULL: does not write); a later load takes them from
// `cost_table`, the settings only where it has as many threads. A file of the bundle, and a model with a context of one token, are SOL_ERROR_USAGE.
SOL_RT_API sol_error* sol_model_measure_costs(sol_model* model, const char* file);

// Takes costs from a table that the host holds, from the next generation on: the text of such a file, in UTF-8. Its lines may be the host's own, in whatever
// it counts (docs/reference/decode-loop.md section 7). NULL goes back to bytes. Settings of the operators in it apply as those of a file do.
// A text that is no table of this bundle is SOL_ERROR_BUNDLE, and the costs stay as they were.
SOL_RT_API sol_error* sol_model_set_costs(sol_model* model, const char* table);

// Settings of the native operators, for all models of the process at once. No setting changes a result.
typedef struct sol_tuning {
  uint32_t size;
  uint32_t cache_level;      // the cache that weights are asked for into before they are read: 1 or 2
  uint32_t row_bytes_ahead;  // how far ahead of its use a row of weights is asked for, to 1 MiB
  uint32_t members;          // threads of a decode step at most, to 1024; 0 for all of the pool's
  uint32_t copies;           // 1: steps read copies of matrices in their order, made at the first one; 0: not, and copies are freed; 2: not, and they stay
} sol_tuning;

// Both do nothing in a library without operators.
SOL_RT_API sol_error* sol_tuning_get(sol_tuning* tuning);  // `tuning->size` is set by the host
SOL_RT_API sol_error* sol_tuning_set(const sol_tuning* tuning);

// ---- Text -----------------------------------------------------------------------------------------------------------------------------------------
// Functions that fill an array take its capacity and always set the full count. If the capacity is too small they fill nothing and return SOL_OK: the
// host compares, makes room and calls again.

enum {
  SOL_ENCODE_ADD_SPECIAL = 1,   // add what the model wants around a text, such as a token for its beginning
  SOL_ENCODE_PARSE_SPECIAL = 2  // special tokens written in the text become those tokens; without it they stay text, or are refused
};

SOL_RT_API sol_error* sol_model_encode(const sol_model* model, const char* text, size_t length, uint32_t flags, int32_t* tokens, size_t capacity,
                                       size_t* count);
// Tokens of a prompt that the host rendered by a chat template. `user`: the stretches [num_user, 2] of the text that came from messages, as begin and end in
// bytes, in order. Special tokens that touch one stay text, or are refused; all others become those tokens.
SOL_RT_API sol_error* sol_model_encode_rendered(const sol_model* model, const char* text, size_t length, const size_t* user, size_t num_user, int32_t* tokens,
                                                size_t capacity, size_t* count);
SOL_RT_API sol_error* sol_model_decode(const sol_model* model, const int32_t* tokens, size_t count, int32_t skip_special, char* text, size_t capacity,
                                       size_t* length);  // no NUL is written

typedef struct sol_message {
  const char* role;     // `system`, `user` or `assistant`
  const char* content;  // text: special tokens in it stay text
} sol_message;

// Tokens of a conversation, with the beginning of the assistant's answer.
SOL_RT_API sol_error* sol_model_encode_chat(const sol_model* model, const sol_message* messages, size_t num_messages, int32_t* tokens, size_t capacity,
                                            size_t* count);

// ---- Session --------------------------------------------------------------------------------------------------------------------------------------

typedef struct sol_session sol_session;

SOL_RT_API sol_error* sol_session_create(sol_model* model, sol_session** session);

// Tokens that an engine of the host is to run, with the inputs of the graph (docs/reference/bundle-details.md section 1). Pointers are valid until the run
// ends.
typedef struct sol_run {
  uint32_t size;
  const int32_t* tokens;     // to append to the cache
  size_t num_tokens;
  size_t past;               // tokens in the cache before them; if the host's cache holds more, drop those beyond
  const char* action;        // tag
  const char* graph;         // file of the bundle: the graph of the action's variant
  const int64_t* kv_pages;   // [num_layers]
  const int64_t* channels;   // [4, num_layers]: active_up, active_down, active_qkv, active_o
  size_t num_logits;         // results wanted, of the last tokens
} sol_run;

// An engine of the host's, in place of the core's: it runs the graphs and holds the KV cache, and the layers' states. The core keeps count of the tokens.
typedef struct sol_host_engine {
  uint32_t size;
  void* user;  // given to the callbacks
  // Runs the tokens and fills float32 logits [num_logits, vocab_size] and hidden [num_logits, hidden_size]. Returning anything but 0 ends the call with
  // SOL_ERROR_HOST; none of the tokens then counts as run. NULL: the host runs steps between `sol_session_begin_step` and `sol_session_end_step`.
  int32_t (*forward)(void* user, const sol_run* run, float* logits, float* hidden);
  // Number of the first `length` tokens that the cache can go back to: `length`, or less to run all tokens anew. NULL: every length.
  size_t (*held)(void* user, size_t length);
} sol_host_engine;

// A session on an engine of the host's. The struct is copied; its callbacks run in the thread of the call that needs them, and call no function of the session
// but those that only read. `sol_session_save` and `_restore` are SOL_ERROR_USAGE: the host has the cache.
SOL_RT_API sol_error* sol_session_create_on(sol_model* model, const sol_host_engine* engine, sol_session** session);
// Ends a running generation first. Other threads must be done with the session, and so must its callbacks: never call this inside one.
SOL_RT_API void sol_session_release(sol_session* session);

// Tokens in the KV cache.
SOL_RT_API sol_error* sol_session_tokens(const sol_session* session, int32_t* tokens, size_t capacity, size_t* count);
// Number of the first ones that no prompt's run by a cheaper variant read.
SOL_RT_API sol_error* sol_session_dense_tokens(const sol_session* session, size_t* count);
// Keeps the first `length` tokens of the cache. Ends a running generation. After a rewind by more than about 512 tokens, layers with a window may not find
// the tokens that they read; then the next generation runs the kept tokens once more. If layers have a state, a copy of it is put back, and the next
// generation runs the tokens after the copy once more, dense.
SOL_RT_API sol_error* sol_session_rewind(sol_session* session, size_t length);
// `save` writes tokens, cache, and the layers' states with their copies to a file, as a whole or not at all. `restore` reads them back into a session of the
// same bundle (any machine, native operators or not as before). Both end a running generation. A file that is missing, damaged or another bundle's is
// SOL_ERROR_BUNDLE; to save over a file of the bundle is SOL_ERROR_USAGE.
SOL_RT_API sol_error* sol_session_save(sol_session* session, const char* file);
SOL_RT_API sol_error* sol_session_restore(sol_session* session, const char* file);
// Bytes of memory that only this session uses: KV cache, states and buffers. 0 while another thread uses the session.
SOL_RT_API uint64_t sol_session_private_bytes(const sol_session* session);

// Called in the thread of the call that runs a prompt, or other tokens at once: after each part of them, with the tokens that are done and all of them. The
// last call has `done` equal to `total`. It may call functions of the session that only read, and `sol_session_cancel`.
typedef void (*sol_prompt_progress)(void* user, uint64_t done, uint64_t total);
// Sets the callback of a session, from its next call on. NULL: none. An engine of the host's has one part.
SOL_RT_API sol_error* sol_session_set_progress(sol_session* session, sol_prompt_progress progress, void* user);

// ---- Single runs ----------------------------------------------------------------------------------------------------------------------------------
// For hosts with a loop of their own, and for measurements. They end a running generation, and may be cancelled.

// The next token's distribution, of the raw logits.
typedef struct sol_distribution {
  uint32_t size;
  int32_t top;             // the likeliest token, the first of several
  float top_logit;
  float second_logit;      // the second largest logit
  float total;             // sum of exp(logit - top_logit)
  float moment;            // sum of exp(logit - top_logit)*(logit - top_logit)
  double top_probability;
  double margin;           // probability of the likeliest token minus that of the second likeliest
  double entropy;          // nats
  double log_sum;          // a token's log-probability is its logit minus this
} sol_distribution;

// Results of the last `num_logits` tokens. A buffer that is NULL is not filled; of another one the number of floats has to be as stated.
typedef struct sol_rows {
  uint32_t size;
  size_t num_logits;       // 1 to the number of tokens
  float* logits;           // [num_logits, vocab_size]
  size_t logits_length;    // num_logits*vocab_size
  float* hidden;           // [num_logits, hidden_size]: output of the final norm
  size_t hidden_length;    // num_logits*hidden_size
} sol_rows;

// Appends tokens to the cache. One token with one row of results is a decode step under `action`; several run in chunks through its variant, with attention
// to all tokens. `action` is the tag of any variant of the bundle with any KV density, as "k050-s100-q4"; NULL: the dense action.
// `rows` and `seen` may be NULL; `seen` is filled with the distribution after the last token. A call that fails leaves a prefix of the tokens in the cache.
SOL_RT_API sol_error* sol_session_forward(sol_session* session, const int32_t* tokens, size_t num_tokens, const char* action, const sol_rows* rows,
                                          sol_distribution* seen);
// Changes the active channels of a variant in this session, by counts for every layer of the input channels that the graph reads: `up` and `qkv` of
// hidden_size, `down` of the MLP's width, `o` of the heads' outputs. NULL: the bundle's own. `variant` is a key, as "s050-q4". An export searches with it.
SOL_RT_API sol_error* sol_session_set_active_channels(sol_session* session, const char* variant, const int32_t* up, const int32_t* down,
                                                      const int32_t* qkv, const int32_t* o, size_t num_layers);

// ---- Generation -----------------------------------------------------------------------------------------------------------------------------------

typedef struct sol_logit_bias {
  int32_t token;
  float bias;  // -100 to 100
} sol_logit_bias;

// Facts that a schedule of the host's gets before a decode step. A is the number of actions. Pointers are valid during the call.
typedef struct sol_choice {
  uint32_t size;
  int32_t token;                  // which the step is to process
  int64_t step;                   // decode steps before this one
  int64_t context;                // tokens in the cache
  size_t num_actions;             // A
  const char* const* actions;     // [A]: tags
  const double* relative_costs;   // [A], at this context, in dense steps
  const uint8_t* allowed;         // [A]: 1 for actions that keep what was asked for; if none does, for those that miss it least
  double target;                  // cost to aim for, in dense steps: makes up for earlier steps
  double allowance;               // cost that a step may have on average, in dense steps
  double budget;                  // that is held; NaN under a rate and targets on the axes
  double achieved_budget;         // cost of the steps so far / their dense cost
  const float* hidden;            // [hidden_size], of the step before
  size_t hidden_size;
  const float* logits;            // [vocab_size], from which `token` was picked
  size_t vocab_size;
  const sol_distribution* distribution;
} sol_choice;

// Returns the index of an action, allowed or not; a negative number ends the call with SOL_ERROR_HOST. It may call functions of the session that only read.
typedef int32_t (*sol_choose)(void* user, const sol_choice* choice);

// Answers of a mask of the host's.
typedef enum sol_masked {
  SOL_MASK_NONE = 0,    // every token may follow
  SOL_MASK_FILLED = 1,  // those may follow whose bits were set: none at all is SOL_ERROR_USAGE
  SOL_MASK_STOP = 2     // the text is complete: the token before it ends with SOL_FINISH_STOP
} sol_masked;

// Says which tokens may follow the first `num_tokens` of the text; the prompt is no part of it. Bit t % 32 of mask[t / 32] is that of token t, end tokens
// included; all bits are 0 before the call. Asked once a position, in the thread of the call that makes the token before it: at first with no tokens, where
// SOL_MASK_STOP is SOL_ERROR_USAGE, then after each token that does not end the text. Returns a `sol_masked`; a negative number ends the call with
// SOL_ERROR_HOST. Pointers are valid during the call. It may call functions of the session that only read.
typedef int32_t (*sol_mask)(void* user, const int32_t* tokens, size_t num_tokens, uint32_t* mask, size_t num_words);

// Numbers that are NaN, or negative where they are counts, stand for the model's own default (generation_config.json).
typedef struct sol_generate_options {
  uint32_t size;
  int32_t max_new_tokens;
  int32_t do_sample;  // 1: draw from the distribution; 0: take the likeliest token
  double temperature;
  int32_t top_k;
  double top_p;
  double min_p;
  double repetition_penalty;
  double presence_penalty;
  double frequency_penalty;
  int64_t seed;  // of sampling and of the schedule `random`: random numbers depend on seed and position alone; negative draws a fresh one
  int32_t top_logprobs;
  const sol_logit_bias* logit_bias;
  size_t num_logit_bias;
  const char* const* stop_strings;  // NULL: the model's own; SOL_ERROR_TEXT for any where the core has no tokenizer for the bundle
  size_t num_stop_strings;
  const int32_t* end_tokens;  // NULL: the model's own
  size_t num_end_tokens;

  // The dial: at most one of budget, tokens_per_second, max_loss and targets on the axes. NaN: not asked for. With none the fastest mix that loses at
  // most 0.5% runs.
  double budget;             // share of the dense cost, 0 to 1
  double tokens_per_second;  // needs measured costs
  double max_loss;           // share by which perplexity may rise, as 0.01
  double kv_density;
  double channel_density;
  double bits;
  const char* schedule;  // `sol`, `hull`, `uniform`, `entropy`, `random`, `fixed:TAG` or `dense`; NULL for the model's default at the budget

  int32_t reuse_cache;   // 1: keep the tokens of the prompt that the cache begins with; 0: run the whole prompt
  const char* trace;     // file to write every step to, as `sol-rt trace` reads it, none of the bundle's; NULL for none
  const char* replay;    // a trace whose actions run again, in place of a dial; NULL for none

  // A schedule of the host's, over the bundle's actions; under targets on the axes, over every KV density with every variant. It holds a budget, a rate or
  // targets, 1.0 if nothing is asked for. `schedule` is then the name under which it is reported; NULL: `own`.
  sol_choose choose;     // NULL for none
  void* choose_user;     // given to `choose`

  // Tokens that are left out have a logit of -inf after bias and penalties, before temperature and filters. Log-probabilities, distributions and schedules
  // stay those of all tokens. Of a screened LM head, allowed tokens that are no candidates keep the screen's logits. Scores and plans ask no mask, and no
  // trace holds one: a replay needs it again.
  sol_mask mask;         // NULL for none
  void* mask_user;       // given to `mask`

  // Drafts: the next tokens are guessed from the text so far, under `lossless` by cheaper steps, too, and one run checks several. The text stays that of
  // single steps, token for token, where one action runs every step. Engines of the host's, function bodies, layers with a state and KV densities below 1
  // step one by one all the same. A replay takes neither.
  int32_t lossless;      // 1: dense steps, with drafts; the dial has to ask for nothing else
  int32_t lookup;        // 1: drafts under whatever the dial asks for; in a mix of `hull` one action runs all tokens of a run
} sol_generate_options;

SOL_RT_API void sol_generate_options_init(sol_generate_options* options, uint32_t size);

typedef enum sol_finish {
  SOL_FINISH_NONE = 0,   // more tokens follow
  SOL_FINISH_STOP = 1,   // end token or stop string, or a mask that ends the text
  SOL_FINISH_LENGTH = 2  // max_new_tokens, or the context is full
} sol_finish;

// One generated token. Pointers are valid until the session's next call.
typedef struct sol_token {
  uint32_t size;
  int32_t token;
  const char* text;          // text that is now certain, UTF-8 with NUL; empty while a character or a stop string is incomplete
  size_t text_length;        // bytes
  const char* action;        // tag of the action that computed it; for the first token that of the prompt's run
  double logprob;            // nats, under the raw distribution
  double cost;               // of its decode step, in the cost model's unit; 0 for the first token
  double relative_cost;      // the same in dense steps
  double achieved_budget;    // cost of the steps so far / their dense cost
  double requested_budget;   // of the steps so far
  double milliseconds;       // since the token before; for the first token, since the start
  sol_finish finish;
  const int32_t* top_tokens;    // the likeliest tokens, `num_top` of them
  const double* top_logprobs;   // their log-probabilities
  size_t num_top;
} sol_token;

typedef struct sol_result {
  uint32_t size;
  int32_t num_tokens;          // generated so far, the end token included
  int32_t prompt_tokens;
  int32_t cached_tokens;       // tokens of the prompt that were in the cache
  const char* schedule;
  const char* cost_model;
  double requested_budget;
  double achieved_budget;
  double expected_loss;        // mean measured loss of the actions taken and of the prompt's run, nats a token; NaN if not measured
  double prompt_tokens_per_second;
  double tokens_per_second;
  double time_to_first_token_ms;
  double fastest_tokens_per_second;  // of the cheapest action at the last context; NaN if costs are bytes
  int32_t floored;             // whether the budget lay below the cheapest action
  int32_t first_difference;    // in a replay, index of the first token that differs from the trace's; -1 where all agree
  sol_finish finish;
  int64_t drafted_tokens;      // tokens that were guessed and run
  int64_t accepted_tokens;     // of these, tokens of the text
  double asked_budget;         // that the dial comes to after this prompt, before the first step; NaN under targets on the axes
  int32_t dense_prompt;        // 1: of the cache, the prompt keeps only tokens that the dense variant read
} sol_result;

// Checks everything and begins; the prompt runs at the first `sol_session_next`. A generation that was running ends.
SOL_RT_API sol_error* sol_session_start(sol_session* session, const int32_t* prompt, size_t num_tokens, const sol_generate_options* options);
// Runs at most `most` tokens of the prompt before the first token, for a host that does other work between the parts of a long one. `left`: its tokens that
// are still to run, one at least, which `sol_session_next` runs. SOL_ERROR_USAGE after the first token, and where the host runs the steps.
SOL_RT_API sol_error* sol_session_read_prompt(sol_session* session, size_t most, size_t* left);
// The next token. After one with `finish` other than SOL_FINISH_NONE the generation is over, and another call is SOL_ERROR_USAGE.
SOL_RT_API sol_error* sol_session_next(sol_session* session, sol_token* token);
// A round: the next token of each of `count` sessions, no session twice. Sessions may join and leave between rounds. Every session gets the token, the text and
// the numbers that `sol_session_next` gives it, bit for bit, and an error that concerns it alone: `errors[i]` is NULL, or for the host to free; then
// `tokens[i]` is not filled. Pointers of a token are valid until its session's next call. All sessions are busy until this call returns, in callbacks of each
// other, too.
// Decode steps of sessions of one model whose actions have the same bits and channels share a run, 16 at most, which reads the weights once for all of them.
// Their KV densities may differ, and nobody's action is changed for another's sake: other steps, and prompts, run one after the other in the same round. So do
// those of host engines, of function bodies, of layers with states, and of sessions with active channels of their own. A step is charged its action's cost
// alone; `milliseconds` is the time of the round. Nothing is drafted in a round of several sessions.
SOL_RT_API sol_error* sol_batch_next(sol_session* const* sessions, size_t count, sol_token* const* tokens, sol_error** errors);
// `sol_session_next` in two halves, for hosts that cannot wait in a callback: on an engine of the host's alone. `begin_step` says what to run: the prompt,
// then a token at a time. Called again before `end_step`, it says the same. `end_step` takes the results of the last token, of vocab_size and
// hidden_size floats, and gives the next token. Other lengths are SOL_ERROR_USAGE, and the step goes on.
SOL_RT_API sol_error* sol_session_begin_step(sol_session* session, sol_run* run);
SOL_RT_API sol_error* sol_session_end_step(sol_session* session, const float* logits, size_t num_logits, const float* hidden, size_t num_hidden,
                                           sol_token* token);
// A run of the policy's graph, which a decode step may need before it begins: where the model was loaded without a runtime. Its inputs are those of the
// graph (docs/reference/bundle-details.md section 5). Pointers are valid until `sol_session_begin_step`.
typedef struct sol_policy_run {
  uint32_t size;
  const char* graph;       // file of the bundle; NULL: no policy is to run
  const float* hidden;     // [hidden_size]
  size_t hidden_size;
  const float* scalars;    // [num_scalars]
  size_t num_scalars;
  int32_t token;
  int32_t first;           // 1: `past_state` is zeros; 0: it is the `present_state` of the run before
  int64_t previous_action;
  int64_t step;
} sol_policy_run;

// Before `begin_step`, on such a model: `begin_policy` says what the policy is to run, if anything, and `end_policy` takes its `action_logits`.
SOL_RT_API sol_error* sol_session_begin_policy(sol_session* session, sol_policy_run* run);
SOL_RT_API sol_error* sol_session_end_policy(sol_session* session, const float* logits, size_t num_logits);

// Ends a running generation. The cache keeps what was run. The next `sol_session_step` needs results of the token before: of `_forward` or `_resume`.
SOL_RT_API sol_error* sol_session_stop(sol_session* session);
// Result of the running or last generation so far.
SOL_RT_API sol_error* sol_session_result(const sol_session* session, sol_result* result);

// Called with every token. Returning anything but 0 stops the generation, which is no error.
typedef int32_t (*sol_on_token)(void* user, const sol_token* token);
// Start, every token, and the result, in one call. `result` may be NULL.
SOL_RT_API sol_error* sol_session_generate(sol_session* session, const int32_t* prompt, size_t num_tokens, const sol_generate_options* options,
                                           sol_on_token on_token, void* user, sol_result* result);

// Log-probabilities of given tokens. Buffers are of the host, N is the number of tokens that are scored; one that is NULL is not filled, of another the length
// has to be as stated. Pointers of the results are valid until the session's next call.
typedef struct sol_scores {
  uint32_t size;
  double* logprobs;              // [N], nats
  size_t logprobs_length;        // N
  float* logits;                 // [N, vocab_size]: those from which each token was scored
  size_t logits_length;          // N*vocab_size
  float* hidden;                 // [N, hidden_size]: the output of the final norm that gave these
  size_t hidden_length;          // N*hidden_size
  // results
  const char* const* actions;    // [N - 1]: tag of each decode step
  size_t num_actions;            // N - 1
  const double* costs;           // [N - 1]: of each step, in the cost model's unit
  const char* schedule;
  double achieved_budget;        // cost of the steps / their dense cost
  double requested_budget;
  double expected_loss;          // mean measured loss of the actions taken, nats a token; NaN if not measured
  int32_t floored;               // whether the budget lay below the cheapest action
} sol_scores;

// Runs the first `context` tokens as a prompt on an empty cache, then scores each later token and processes it as a decode step; the last one is only scored.
// Of `options` the dial, the schedule and the seed count; NULL, or a dial that asks for nothing but a schedule, is a budget of 1.0. `fixed:TAG` scores under
// one action.
// Ends a running generation. 1 <= context < num_tokens.
SOL_RT_API sol_error* sol_session_score(sol_session* session, const int32_t* tokens, size_t num_tokens, size_t context,
                                        const sol_generate_options* options, sol_scores* scores);

// Decode steps of a loop of the host's: the core picks the action of each and holds the dial, the host picks the tokens.
//
//   sol_session_plan(session, &options);                                     // the dial, the schedule and the seed count
//   sol_session_forward(session, prompt, length, NULL, &rows, &seen);
//   while (...) sol_session_step(session, token, &rows, &seen, &step);       // `token` of the host's choice, by `rows` or `seen`
//
// A plan stays until the next one. Its account and its schedule go on over `forward` and `resume`, after which the schedule counts steps anew. A generation,
// a score, a rewind, a save, a restore and changed channels come between: `step` then needs a `forward` or `resume` first, else it is SOL_ERROR_USAGE.
typedef struct sol_step {
  uint32_t size;
  const char* action;       // tag; valid until the session's next call
  int64_t context;          // tokens in the cache before the step
  double cost;              // in the cost model's unit, the policy's run included
  double relative_cost;     // the same in dense steps
  double achieved_budget;   // cost of the steps so far / their dense cost
  double requested_budget;  // of the steps so far
  int32_t floored;          // whether the budget lay below the cheapest action at a step so far
} sol_step;

SOL_RT_API sol_error* sol_session_plan(sol_session* session, const sol_generate_options* options);
// Processes one token. `rows` (of one token) and `seen` are as in `sol_session_forward`.
SOL_RT_API sol_error* sol_session_step(sol_session* session, int32_t token, const sol_rows* rows, sol_distribution* seen, sol_step* step);
// Keeps the first `length` tokens of the cache, and takes these numbers for the results of the last of them: vocab_size logits and hidden_size floats, which a
// host has kept of `rows`. So several plans may start after one prompt.
SOL_RT_API sol_error* sol_session_resume(sol_session* session, size_t length, const float* logits, size_t num_logits, const float* hidden,
                                         size_t num_hidden);

// From any thread, at any time: ends the running generation's call, a run or a score, or else the next one, with SOL_ERROR_CANCELLED. The call ends within one
// decode step or one chunk of the prompt. The cache keeps what was run. A request that has not yet ended a call is forgotten at the end of a text, and by
// `sol_session_stop`, `_rewind`, `_save` and `_restore`.
SOL_RT_API void sol_session_cancel(sol_session* session);
// From any thread, at any time: holds from the next decode step on. 0 to 1; replaces whatever the generation held before, and keeps its schedule.
// Without a running generation, and for targets on the axes, `fixed:TAG`, `dense` and a replay: SOL_ERROR_USAGE.
SOL_RT_API sol_error* sol_session_set_budget(sol_session* session, double budget);
SOL_RT_API sol_error* sol_session_set_tokens_per_second(sol_session* session, double rate);
// From any thread: 1 while a call runs in another thread or a generation is under way, else 0.
SOL_RT_API int32_t sol_session_busy(const sol_session* session);

// ---- Governor: from the device's state to a budget ------------------------------------------------------------------------------------------------
// A pure function with a state of its own (docs/reference/decode-loop.md section 8). Call it every second or every few tokens and hand its budget on.

typedef struct sol_governor_settings {
  uint32_t size;
  double lowest_budget;      // bounds of the budget
  double highest_budget;
  double tokens_per_second;  // wanted rate; NaN for none
} sol_governor_settings;

typedef struct sol_governor_reading {
  uint32_t size;
  double battery;            // level, 0 to 1; NaN if unknown
  int32_t charging;          // 1, 0, or -1 if unknown
  double thermal;            // 0 cool; 1 where the system begins to throttle (Android's thermal headroom); NaN if unknown
  double tokens_per_second;  // measured; NaN if unknown
} sol_governor_reading;

typedef struct sol_governor_state {
  uint32_t size;
  double budget;         // to hand on
  double reserved[7];    // the governor's own
} sol_governor_state;

SOL_RT_API void sol_governor_settings_init(sol_governor_settings* settings, uint32_t size);
SOL_RT_API void sol_governor_reading_init(sol_governor_reading* reading, uint32_t size);
SOL_RT_API sol_error* sol_governor_begin(const sol_governor_settings* settings, sol_governor_state* state);
SOL_RT_API sol_error* sol_governor_step(const sol_governor_settings* settings, const sol_governor_reading* reading, sol_governor_state* state);

#ifdef __cplusplus
}
#endif

#endif  // SOL_RT_H_
