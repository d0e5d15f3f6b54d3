// Costs and plans of decode steps, mostly from a bundle's config alone, and checks of files. For exports, trainings, reports and engines of the host's; other
// hosts that generate need none of it. The rules of sol_rt.h hold here, too.
//
// Threads: a `sol_costs` and a `sol_hull` may be used by any number of threads at once, a `sol_plan` by one at a time.
#ifndef SOL_PLAN_H_
#define SOL_PLAN_H_

#include "sol_rt.h"

#ifdef __cplusplus
extern "C" {
#endif

// ---- Files ----------------------------------------------------------------------------------------------------------------------------------------
// For hosts that read them. `path` names the file in errors.

// Checks the text of a sol_config.json as a load does. `shapes`: 1 to compare dims and bits with the shapes of its tensors, too. One that no bundle may have is
// SOL_ERROR_BUNDLE.
SOL_RT_API sol_error* sol_config_check(const char* config, size_t length, const char* path, int32_t shapes);
// Weights that a graph file takes from other files: ONNX Runtime does not report them, and reads whatever a graph refers to. A list in JSON with the keys
// `name`, `dtype` and `shape` (as in sol_config.json), `location`, `offset` (0 where none is given) and `length` (-1). A file that is no ONNX model, or one
// that would end the process, is SOL_ERROR_BUNDLE. No NUL is written.
SOL_RT_API sol_error* sol_graph_weights(const void* graph, size_t size, const char* path, char* json, size_t capacity, size_t* length);
// Checks the text of a trace as a replay does. One that is none, damaged or cut off is SOL_ERROR_USAGE.
SOL_RT_API sol_error* sol_trace_check(const char* trace, size_t length, const char* path);

// ---- Costs ----------------------------------------------------------------------------------------------------------------------------------------

typedef struct sol_costs sol_costs;

// `config`: text of a sol_config.json. `table`: text of a cost table, whose bundle is not compared; NULL: costs are bytes.
SOL_RT_API sol_error* sol_costs_create(const char* config, const char* table, sol_costs** costs);
SOL_RT_API void sol_costs_release(sol_costs* costs);
// Costs of the table that is kept for a bundle on a device, `sol_runtime_device` or the host's own name; bytes where there is none. `folder` is as
// `costs_folder` of a load, `config` the whole sol_config.json. `quick`: 1 if a table of a first load counts.
SOL_RT_API sol_error* sol_costs_find(const char* folder, const char* config, const char* device, int32_t quick, sol_costs** costs);
// Keeps a table for later loads of its bundle on its device. For one thread at a time.
SOL_RT_API sol_error* sol_costs_keep(sol_costs* costs, const char* folder);

typedef struct sol_cost_table {
  uint32_t size;
  const char* text;  // empty: costs are bytes
  const char* file;  // empty where it lies nowhere
  const char* note;  // a line for the user, mostly empty
} sol_cost_table;

// Pointers are valid as long as the handle: of a model, what it was loaded with.
SOL_RT_API sol_error* sol_costs_get_table(const sol_costs* costs, sol_cost_table* table);
SOL_RT_API sol_error* sol_model_get_cost_table(const sol_model* model, sol_cost_table* table);

typedef struct sol_tuned {
  uint32_t size;
  int32_t steady;         // 1 if the gains agreed from round to round; 0: other programs ran meanwhile
  double gain;            // steps are so many times as fast as under the defaults, at least 1
  double gain_of_copies;  // whole 4-bit steps by copies of matrices: 1 where it is not clear; NaN if not tried for lack of such steps, time or memory
  double dense_ms;        // a dense step under the settings that were taken
} sol_tuned;

// Tries more settings of the native operators than a first load, for about `seconds` and a third of it for copies, and applies the best.
SOL_RT_API sol_error* sol_model_tune(sol_model* model, double seconds, sol_progress progress, void* user, sol_tuned* tuned);
// Cost of steps without the policy's run, in the cost model's unit: `steps` [num_contexts, num_actions]. `actions` are tags of any variants of the bundle
// with any KV density; `contexts` are the tokens in the cache before the step.
SOL_RT_API sol_error* sol_costs_steps(const sol_costs* costs, const char* const* actions, size_t num_actions, const int64_t* contexts,
                                      size_t num_contexts, double* steps);
// Cached tokens that a step reads, and KV pages whose key codes it scores: means over the layers that attend. They do not depend on the cost model.
SOL_RT_API sol_error* sol_costs_reads(const sol_costs* costs, const char* action, int64_t context, double* tokens, double* pages);
SOL_RT_API double sol_costs_policy(const sol_costs* costs);  // of one run of the policy; 0 without one, and for NULL
// Expected added loss of actions over dense at a context, nats a token: `losses` [num_actions]; NaN if not measured.
SOL_RT_API sol_error* sol_costs_losses(const sol_costs* costs, const char* const* actions, size_t num_actions, int64_t context, double* losses);
// Tags of the actions that a schedule works with, separated by spaces and ended by NUL. `length` counts the bytes without the NUL. `own` stands for a schedule
// of the host's. `targets`: 1 under targets on the axes.
SOL_RT_API sol_error* sol_costs_actions(const sol_costs* costs, const char* schedule, int32_t targets, char* tags, size_t capacity, size_t* length);
// The schedule of a run that names none: `sol`, `hull` or `uniform`. `targets`: 1 under targets on the axes.
SOL_RT_API sol_error* sol_costs_default_schedule(const sol_costs* costs, int32_t targets, const char** schedule);
// A line for the user about a schedule that is named, mostly empty: how much of a step's time the policy of `sol` takes, where `hull` is the default for it.
// `length` is as in `sol_costs_actions`.
SOL_RT_API sol_error* sol_costs_schedule_note(const sol_costs* costs, const char* schedule, char* note, size_t capacity, size_t* length);

typedef struct sol_profile {
  uint32_t size;
  int32_t repeats;            // timed steps of each action at each context
  const int64_t* contexts;    // tokens in the cache, rising, below the session's context
  size_t num_contexts;
  double seconds;             // about how long to take: then fewer repeats, at least 5, and contexts are left out that take long to fill
  const char* device;         // that is measured, for the table; NULL: the runtime's
  sol_progress progress;      // NULL for none
  void* user;                 // given to `progress`
  // results
  const char* const* actions;  // tags of every variant at every KV density
  size_t num_actions;
  const double* ms;            // [num_measured, num_actions]: lower quartiles
  size_t num_measured;         // contexts
  const char* table;           // text of a cost table with lines fitted to them
} sol_profile;

// Measures costs better than a first load does. Overwrites the session's cache and leaves it empty. Results are valid until the session's next call.
SOL_RT_API sol_error* sol_session_profile(sol_session* session, sol_profile* profile);

// ---- Hull: which actions to mix -------------------------------------------------------------------------------------------------------------------

typedef struct sol_hull sol_hull;

// The lower hull of (relative cost, expected loss) of these actions, the dense one among them, each once.
SOL_RT_API sol_error* sol_hull_create(const sol_costs* costs, const char* const* actions, size_t num_actions, sol_hull** hull);
SOL_RT_API void sol_hull_release(sol_hull* hull);
// The corners at a context, from the cheapest action to dense: places among the actions, relative costs, losses. Arrays of the capacity num_actions;
// `count` is set to the number of corners.
SOL_RT_API sol_error* sol_hull_corners(const sol_hull* hull, int64_t context, size_t* places, double* costs, double* losses, size_t* count);
// Relative cost of the cheapest mix that loses at most `loss` nats a token; dense's if none does.
SOL_RT_API sol_error* sol_hull_cost_at(const sol_hull* hull, double loss, int64_t context, double* cost);

// Corners of the lower convex hull of `count` points (xs, ys), in ascending order of x. Puts them in front in both arrays and sets `count` to their number.
// `falling`: 1 for those up to the least y.
SOL_RT_API sol_error* sol_lower_hull(double* xs, double* ys, size_t* count, int32_t falling);

// ---- Plans: the actions of a run ------------------------------------------------------------------------------------------------------------------

typedef struct sol_plan sol_plan;

// Facts that a policy is asked with. Pointers are valid during the call.
typedef struct sol_policy_inputs {
  uint32_t size;
  int32_t token;            // the token about to be processed
  const float* hidden;      // of `sol_plan_seen`
  size_t hidden_size;
  const float* scalars;     // [num_scalars], in the order of the config's policy
  size_t num_scalars;
  int64_t previous_action;  // place among the policy's actions; -1 at the start of an episode
  int64_t step;             // position within the episode
  int32_t fresh;            // 1 at the first call of a plan: forget the episodes before
} sol_policy_inputs;

// Fills the logits of the policy's actions. Returning anything but 0 ends the call with SOL_ERROR_HOST.
typedef int32_t (*sol_decide)(void* user, const sol_policy_inputs* inputs, float* logits);

typedef struct sol_plan_options {
  uint32_t size;
  const sol_generate_options* options;  // the dial, the schedule and the seed count; NULL for none. `choose` gets the hidden state of `sol_plan_seen`
  const char* const* actions;           // tags to choose among, the dense action with them; NULL for those of the schedule
  size_t num_actions;
  sol_decide decide;                    // in place of the bundle's policy, for `sol`; NULL for none
  void* decide_user;                    // given to `decide`
} sol_plan_options;

// Facts about a step.
typedef struct sol_plan_seen {
  uint32_t size;
  int32_t token;        // the token about to be processed
  int64_t step;         // decode steps before this one
  int64_t context;      // tokens in the cache
  const float* hidden;  // [hidden_size], handed on to the policy; may be NULL
  size_t hidden_size;
  const float* logits;  // [num_logits], from which the token was picked; NULL if not known: `entropy` needs them, and to `sol` all tokens are alike
  size_t num_logits;
} sol_plan_seen;

// `costs` may be released before the plan.
SOL_RT_API sol_error* sol_plan_create(const sol_costs* costs, const sol_plan_options* options, sol_plan** plan);
SOL_RT_API void sol_plan_release(sol_plan* plan);
// Chooses the action of a step and books its cost. `step->action` is valid until the plan's next call.
SOL_RT_API sol_error* sol_plan_step(sol_plan* plan, const sol_plan_seen* seen, sol_step* step);
// Hold from the next step on, as `sol_session_set_budget` and `_tokens_per_second` do.
SOL_RT_API sol_error* sol_plan_set_budget(sol_plan* plan, double budget);
SOL_RT_API sol_error* sol_plan_set_tokens_per_second(sol_plan* plan, double rate);

#ifdef __cplusplus
}
#endif

#endif  // SOL_PLAN_H_
