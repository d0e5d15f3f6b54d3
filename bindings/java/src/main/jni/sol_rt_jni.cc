// The native methods of ai.solrt.SolNative, over sol_rt.h. Java keeps every pointer valid while a method here uses it.
//
// No C++ runtime library is needed: Android apps need not ship one for this file.
#include <jni.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "sol_rt.h"

static_assert(sizeof(jint) == sizeof(int32_t) && sizeof(jlong) >= sizeof(void*), "tokens and pointers cross as jint and jlong");

namespace {

jclass exception_class, native_class;
jmethodID exception_of, native_choose;

template <class T>
T* Handle(jlong pointer) {
  return reinterpret_cast<T*>(static_cast<intptr_t>(pointer));
}

jlong Pointer(void* handle) { return static_cast<jlong>(reinterpret_cast<intptr_t>(handle)); }

jbyteArray BytesOf(JNIEnv* env, const char* text, size_t length) {
  jbyteArray bytes = env->NewByteArray(static_cast<jsize>(length));
  if (bytes) env->SetByteArrayRegion(bytes, 0, static_cast<jsize>(length), reinterpret_cast<const jbyte*>(text));
  return bytes;
}

// Throws `error` as SolException and frees it. False where there is none.
bool Throw(JNIEnv* env, sol_error* error) {
  if (!error) return false;
  // What a callback in Java threw is still on its way and says more.
  if (!env->ExceptionCheck()) {
    const char* message = sol_error_message(error);
    jbyteArray bytes = BytesOf(env, message, strlen(message));
    jobject exception = bytes ? env->CallStaticObjectMethod(exception_class, exception_of, static_cast<jint>(sol_error_code(error)), bytes) : nullptr;
    if (!env->ExceptionCheck() && exception) env->Throw(static_cast<jthrowable>(exception));
  }
  sol_error_release(error);
  return true;
}

void ThrowMemory(JNIEnv* env) {
  if (env->ExceptionCheck()) return;
  jclass error = env->FindClass("java/lang/OutOfMemoryError");
  if (error) env->ThrowNew(error, "sol_rt_jni");
}

// A copy of a Java array of bytes, ints, longs, floats or doubles for the length of a call; of null it is NULL and empty.
template <class T>
struct Copy {
  T* data = nullptr;
  size_t size = 0;

  Copy(JNIEnv* env, jarray array) {
    if (!array) return;
    size = static_cast<size_t>(env->GetArrayLength(array));
    data = static_cast<T*>(malloc(size * sizeof(T) + 1));
    if (data) Read(env, array, data);
    else ThrowMemory(env);
  }
  ~Copy() { free(data); }
  Copy(const Copy&) = delete;
  Copy& operator=(const Copy&) = delete;

 private:
  void Read(JNIEnv* env, jarray a, char* to) { env->GetByteArrayRegion(static_cast<jbyteArray>(a), 0, Length(), reinterpret_cast<jbyte*>(to)); }
  void Read(JNIEnv* env, jarray a, int32_t* to) { env->GetIntArrayRegion(static_cast<jintArray>(a), 0, Length(), reinterpret_cast<jint*>(to)); }
  void Read(JNIEnv* env, jarray a, int64_t* to) { env->GetLongArrayRegion(static_cast<jlongArray>(a), 0, Length(), reinterpret_cast<jlong*>(to)); }
  void Read(JNIEnv* env, jarray a, float* to) { env->GetFloatArrayRegion(static_cast<jfloatArray>(a), 0, Length(), to); }
  void Read(JNIEnv* env, jarray a, double* to) { env->GetDoubleArrayRegion(static_cast<jdoubleArray>(a), 0, Length(), to); }
  jsize Length() const { return static_cast<jsize>(size); }
};

using String = Copy<char>;  // Java adds the NUL

// Copies of a byte[][]: strings that end in NUL, or NULL. Of null it is NULL and empty.
struct Strings {
  char** data = nullptr;
  size_t size = 0;

  Strings(JNIEnv* env, jobjectArray array) {
    if (!array) return;
    const size_t wanted = static_cast<size_t>(env->GetArrayLength(array));
    data = static_cast<char**>(calloc(wanted + 1, sizeof(char*)));
    if (!data) ThrowMemory(env);
    for (; size < wanted && !env->ExceptionCheck(); size++) {
      jarray element = static_cast<jarray>(env->GetObjectArrayElement(array, static_cast<jsize>(size)));
      String copy(env, element);
      data[size] = copy.data;
      copy.data = nullptr;
      env->DeleteLocalRef(element);
    }
  }
  ~Strings() {
    for (size_t i = 0; i < size; i++) free(data[i]);
    free(data);
  }
  Strings(const Strings&) = delete;
  Strings& operator=(const Strings&) = delete;
};

void SetString(JNIEnv* env, jobjectArray strings, jsize index, const char* text, size_t length) {
  if (!text || env->ExceptionCheck()) return;
  jbyteArray bytes = BytesOf(env, text, length);
  if (!bytes) return;
  env->SetObjectArrayElement(strings, index, bytes);
  env->DeleteLocalRef(bytes);
}

void SetString(JNIEnv* env, jobjectArray strings, jsize index, const char* text) { SetString(env, strings, index, text, text ? strlen(text) : 0); }

jdoubleArray Numbers(JNIEnv* env, const double* numbers, size_t count) {
  if (env->ExceptionCheck()) return nullptr;
  jdoubleArray array = env->NewDoubleArray(static_cast<jsize>(count));
  if (array) env->SetDoubleArrayRegion(array, 0, static_cast<jsize>(count), numbers);
  return array;
}

jintArray NewArray(JNIEnv* env, const int32_t* tokens, size_t count) {
  jintArray array = env->NewIntArray(static_cast<jsize>(count));
  if (array) env->SetIntArrayRegion(array, 0, static_cast<jsize>(count), reinterpret_cast<const jint*>(tokens));
  return array;
}

jbyteArray NewArray(JNIEnv* env, const char* text, size_t count) { return BytesOf(env, text, count); }

// The array that `fill(T* room, size_t capacity, size_t* count)` gives: called again with more room where it does not fit.
template <class T, class Fill>
auto Filled(JNIEnv* env, Fill fill) -> decltype(NewArray(env, static_cast<const T*>(nullptr), 0)) {
  T small[512];
  T* room = small;
  size_t capacity = sizeof small / sizeof(T), count = 0;
  decltype(NewArray(env, room, 0)) result = nullptr;
  bool failed = Throw(env, fill(room, capacity, &count));
  if (!failed && count > capacity) {
    capacity = count;
    room = static_cast<T*>(malloc(capacity * sizeof(T)));
    if (!room) ThrowMemory(env);
    failed = !room || Throw(env, fill(room, capacity, &count));
  }
  if (!failed) result = NewArray(env, room, count < capacity ? count : capacity);
  if (room != small) free(room);
  return result;
}

struct Progress {
  JNIEnv* env;
  jobject callback;
  jmethodID report;
};

int32_t Report(void* user, const char* what, uint64_t done, uint64_t total) {
  const Progress& progress = *static_cast<Progress*>(user);
  if (progress.env->ExceptionCheck()) return 1;
  jstring text = progress.env->NewStringUTF(what);  // English words of this library: ASCII
  if (text) progress.env->CallVoidMethod(progress.callback, progress.report, text, static_cast<jlong>(done), static_cast<jlong>(total));
  progress.env->DeleteLocalRef(text);
  return progress.env->ExceptionCheck() ? 1 : 0;
}

// The schedule of the call that this thread makes.
struct Asked {
  JNIEnv* env;
  jobject schedule;
};
thread_local Asked asked;

int32_t Choose(void*, const sol_choice* choice) {
  const Asked mine = asked;  // the schedule may call another session, with a schedule of its own
  JNIEnv* const env = mine.env;
  if (env->PushLocalFrame(16) != 0) return -1;
  const double facts[] = {double(choice->token), double(choice->step), double(choice->context), choice->target, choice->allowance, choice->budget,
                          choice->achieved_budget, choice->distribution->top_probability, choice->distribution->margin, choice->distribution->entropy};
  const jsize count = static_cast<jsize>(choice->num_actions), width = static_cast<jsize>(choice->hidden_size);
  jdoubleArray numbers = Numbers(env, facts, sizeof facts / sizeof *facts), costs = Numbers(env, choice->relative_costs, choice->num_actions);
  jclass bytes = env->ExceptionCheck() ? nullptr : env->FindClass("[B");
  jobjectArray actions = bytes ? env->NewObjectArray(count, bytes, nullptr) : nullptr;
  for (jsize i = 0; actions && i < count; i++) SetString(env, actions, i, choice->actions[i]);
  jbyteArray allowed = env->ExceptionCheck() ? nullptr : BytesOf(env, reinterpret_cast<const char*>(choice->allowed), choice->num_actions);
  jfloatArray hidden = allowed ? env->NewFloatArray(width) : nullptr;
  int32_t index = -1;
  if (hidden) {
    env->SetFloatArrayRegion(hidden, 0, width, choice->hidden);
    index = env->CallStaticIntMethod(native_class, native_choose, mine.schedule, numbers, actions, costs, allowed, hidden);
  }
  if (env->ExceptionCheck()) index = -1;
  env->PopLocalFrame(nullptr);
  asked = mine;
  return index;
}

jarray Part(JNIEnv* env, jobjectArray parts, jsize index) { return static_cast<jarray>(env->GetObjectArrayElement(parts, index)); }

// The options of `GenerateOptions.parts` in C, valid as long as this object, where Java throws nothing.
struct Options {
  Copy<int32_t> counts, biased, ends;
  Copy<double> numbers;
  Copy<int64_t> seed;
  Copy<float> bias;
  Strings stops, texts;
  sol_logit_bias* logit_bias;
  sol_generate_options raw;

  Options(JNIEnv* env, jobjectArray parts)
      : counts(env, Part(env, parts, 0)), biased(env, Part(env, parts, 3)), ends(env, Part(env, parts, 6)), numbers(env, Part(env, parts, 1)),
        seed(env, Part(env, parts, 2)), bias(env, Part(env, parts, 4)), stops(env, static_cast<jobjectArray>(Part(env, parts, 5))),
        texts(env, static_cast<jobjectArray>(Part(env, parts, 7))),
        logit_bias(static_cast<sol_logit_bias*>(malloc(biased.size * sizeof(sol_logit_bias) + 1))) {
    if (!logit_bias) ThrowMemory(env);
    if (!env->ExceptionCheck()) Fill();
  }
  ~Options() { free(logit_bias); }
  Options(const Options&) = delete;
  Options& operator=(const Options&) = delete;

 private:
  void Fill() {
    sol_generate_options_init(&raw, sizeof raw);
    int32_t* const count_fields[] = {&raw.max_new_tokens, &raw.do_sample, &raw.top_k, &raw.top_logprobs, &raw.reuse_cache,
                                      &raw.lossless, &raw.lookup};
    for (size_t i = 0; i < 7; i++) {
      if (counts.data[i] >= 0) *count_fields[i] = counts.data[i];
    }
    double* const number_fields[] = {&raw.temperature, &raw.top_p, &raw.min_p, &raw.repetition_penalty, &raw.presence_penalty, &raw.frequency_penalty,
                                     &raw.budget, &raw.tokens_per_second, &raw.max_loss, &raw.kv_density, &raw.channel_density, &raw.bits};
    for (size_t i = 0; i < 12; i++) *number_fields[i] = numbers.data[i];
    raw.seed = seed.data[0];
    for (size_t i = 0; i < biased.size; i++) logit_bias[i] = {biased.data[i], bias.data[i]};
    raw.logit_bias = biased.size > 0 ? logit_bias : nullptr;  // an empty list would replace the model's own
    raw.num_logit_bias = biased.size;
    raw.stop_strings = stops.data;
    raw.num_stop_strings = stops.size;
    raw.end_tokens = ends.data;
    raw.num_end_tokens = ends.size;
    raw.schedule = texts.data[0];
    raw.trace = texts.data[1];
    raw.replay = texts.data[2];
    raw.choose = counts.data[7] != 0 ? Choose : nullptr;
  }
};

sol_governor_settings Settings(JNIEnv* env, jdoubleArray array) {
  Copy<double> numbers(env, array);
  sol_governor_settings settings;
  sol_governor_settings_init(&settings, sizeof settings);
  if (!numbers.data) return settings;
  settings.lowest_budget = numbers.data[0];
  settings.highest_budget = numbers.data[1];
  settings.tokens_per_second = numbers.data[2];
  return settings;
}

void SetState(JNIEnv* env, jdoubleArray array, const sol_governor_state& state) {
  env->SetDoubleArrayRegion(array, 0, 1, &state.budget);
  env->SetDoubleArrayRegion(array, 1, 7, state.reserved);
}

}  // namespace

#define SOL_JNI(type, name) extern "C" JNIEXPORT type JNICALL Java_ai_solrt_SolNative_##name

extern "C" JNIEXPORT jint JNICALL JNI_OnLoad(JavaVM* vm, void*) {
  JNIEnv* env = nullptr;
  if (vm->GetEnv(reinterpret_cast<void**>(&env), JNI_VERSION_1_6) != JNI_OK) return JNI_ERR;
  jclass local = env->FindClass("ai/solrt/SolException");
  if (!local) return JNI_ERR;
  exception_class = static_cast<jclass>(env->NewGlobalRef(local));
  exception_of = env->GetStaticMethodID(local, "of", "(I[B)Lai/solrt/SolException;");
  if (!exception_class || !exception_of) return JNI_ERR;
  local = env->FindClass("ai/solrt/SolNative");
  if (!local) return JNI_ERR;
  native_class = static_cast<jclass>(env->NewGlobalRef(local));
  native_choose = env->GetStaticMethodID(local, "choose", "(Lai/solrt/SolSchedule;[D[[B[D[B[F)I");
  return native_class && native_choose ? JNI_VERSION_1_6 : JNI_ERR;
}

SOL_JNI(jstring, version)(JNIEnv* env, jclass) { return env->NewStringUTF(sol_version()); }

// ---- Runtime --------------------------------------------------------------------------------------------------------------------------------------

SOL_JNI(jlong, runtimeCreate)(JNIEnv* env, jclass, jbyteArray ort_library, jint threads, jint native_operators, jint spin) {
  String library(env, ort_library);
  if (env->ExceptionCheck()) return 0;
  sol_runtime_options options;
  sol_runtime_options_init(&options, sizeof options);
  options.ort_library = library.data;
  options.threads = threads;
  options.native_operators = native_operators;
  options.spin = spin;
  sol_runtime* runtime = nullptr;
  Throw(env, sol_runtime_create(&options, &runtime));
  return Pointer(runtime);
}

SOL_JNI(void, runtimeRelease)(JNIEnv*, jclass, jlong runtime) { sol_runtime_release(Handle<sol_runtime>(runtime)); }

SOL_JNI(jstring, runtimeOrtVersion)(JNIEnv* env, jclass, jlong runtime) { return env->NewStringUTF(sol_runtime_ort_version(Handle<sol_runtime>(runtime))); }

// ---- Model and text -------------------------------------------------------------------------------------------------------------------------------

SOL_JNI(jlong, modelLoad)(JNIEnv* env, jclass, jlong runtime, jbyteArray folder, jint verify, jint max_context, jbyteArray cost_table,
                          jbyteArray prefill, jint costs, jbyteArray costs_folder, jobject callback) {
  String path(env, folder), table(env, cost_table), variant(env, prefill), kept(env, costs_folder);
  Progress progress{env, callback, nullptr};
  if (callback) progress.report = env->GetMethodID(env->GetObjectClass(callback), "report", "(Ljava/lang/String;JJ)V");
  if (env->ExceptionCheck()) return 0;
  sol_model_options options;
  sol_model_options_init(&options, sizeof options);
  options.verify = static_cast<sol_verify>(verify);
  options.max_context = max_context;
  options.cost_table = table.data;
  options.prefill = variant.data;
  options.costs = static_cast<sol_cost_source>(costs);
  options.costs_folder = kept.data;
  options.progress = callback ? Report : nullptr;
  options.user = &progress;
  sol_model* model = nullptr;
  Throw(env, sol_model_load(Handle<sol_runtime>(runtime), path.data, &options, &model));
  return Pointer(model);
}

SOL_JNI(void, modelRelease)(JNIEnv*, jclass, jlong model) { sol_model_release(Handle<sol_model>(model)); }

SOL_JNI(jdoubleArray, modelInfo)(JNIEnv* env, jclass, jlong model, jobjectArray strings) {
  sol_model_info info{};
  info.size = sizeof info;
  if (Throw(env, sol_model_get_info(Handle<sol_model>(model), &info))) return nullptr;
  const char* texts[] = {info.name, info.generator, info.identity, info.default_schedule, info.cost_model, info.dense, info.cost_note};
  for (jsize i = 0; i < 7; i++) SetString(env, strings, i, texts[i]);
  const double numbers[] = {double(info.vocab_size), double(info.hidden_size),   double(info.num_layers), double(info.max_context),
                            double(info.num_actions), double(info.has_policy),   double(info.has_losses), double(info.has_tokenizer),
                            double(info.has_chat),   double(info.native),        double(info.mapped_bytes)};
  return Numbers(env, numbers, sizeof numbers / sizeof *numbers);
}

SOL_JNI(jdoubleArray, modelAction)(JNIEnv* env, jclass, jlong model, jint index, jobjectArray strings) {
  sol_action_info info{};
  info.size = sizeof info;
  if (Throw(env, sol_model_get_action(Handle<sol_model>(model), index, &info))) return nullptr;
  SetString(env, strings, 0, info.tag);
  const double numbers[] = {info.relative_cost, info.loss};
  return Numbers(env, numbers, 2);
}

SOL_JNI(void, modelMeasureCosts)(JNIEnv* env, jclass, jlong model, jbyteArray file) {
  String path(env, file);
  if (!env->ExceptionCheck()) Throw(env, sol_model_measure_costs(Handle<sol_model>(model), path.data));
}

SOL_JNI(void, modelSetCosts)(JNIEnv* env, jclass, jlong model, jbyteArray table) {
  String text(env, table);
  if (!env->ExceptionCheck()) Throw(env, sol_model_set_costs(Handle<sol_model>(model), text.data));
}

SOL_JNI(jintArray, modelEncode)(JNIEnv* env, jclass, jlong model, jbyteArray text, jint flags) {
  String copy(env, text);
  if (env->ExceptionCheck()) return nullptr;
  return Filled<int32_t>(env, [&](int32_t* room, size_t capacity, size_t* count) {
    return sol_model_encode(Handle<sol_model>(model), copy.data, copy.size - 1, static_cast<uint32_t>(flags), room, capacity, count);
  });
}

SOL_JNI(jbyteArray, modelDecode)(JNIEnv* env, jclass, jlong model, jintArray tokens, jboolean skip_special) {
  Copy<int32_t> copy(env, tokens);
  if (env->ExceptionCheck()) return nullptr;
  return Filled<char>(env, [&](char* room, size_t capacity, size_t* count) {
    return sol_model_decode(Handle<sol_model>(model), copy.data, copy.size, skip_special, room, capacity, count);
  });
}

SOL_JNI(jintArray, modelEncodeChat)(JNIEnv* env, jclass, jlong model, jobjectArray roles_and_contents) {
  Strings texts(env, roles_and_contents);
  if (env->ExceptionCheck()) return nullptr;
  // A role and a content after one another are a sol_message.
  static_assert(sizeof(sol_message) == 2 * sizeof(char*), "sol_message is two pointers");
  const sol_message* messages = reinterpret_cast<const sol_message*>(texts.data);
  return Filled<int32_t>(env, [&](int32_t* room, size_t capacity, size_t* count) {
    return sol_model_encode_chat(Handle<sol_model>(model), messages, texts.size / 2, room, capacity, count);
  });
}

// ---- Session --------------------------------------------------------------------------------------------------------------------------------------

SOL_JNI(jlong, sessionCreate)(JNIEnv* env, jclass, jlong model) {
  sol_session* session = nullptr;
  Throw(env, sol_session_create(Handle<sol_model>(model), &session));
  return Pointer(session);
}

SOL_JNI(void, sessionRelease)(JNIEnv*, jclass, jlong session) { sol_session_release(Handle<sol_session>(session)); }

SOL_JNI(jintArray, sessionTokens)(JNIEnv* env, jclass, jlong session) {
  return Filled<int32_t>(env, [&](int32_t* room, size_t capacity, size_t* count) {
    return sol_session_tokens(Handle<sol_session>(session), room, capacity, count);
  });
}

SOL_JNI(void, sessionRewind)(JNIEnv* env, jclass, jlong session, jlong length) {
  // A negative length becomes one that is too long, which the library refuses.
  Throw(env, sol_session_rewind(Handle<sol_session>(session), static_cast<size_t>(length)));
}

SOL_JNI(void, sessionSave)(JNIEnv* env, jclass, jlong session, jbyteArray file) {
  String path(env, file);
  if (!env->ExceptionCheck()) Throw(env, sol_session_save(Handle<sol_session>(session), path.data));
}

SOL_JNI(void, sessionRestore)(JNIEnv* env, jclass, jlong session, jbyteArray file) {
  String path(env, file);
  if (!env->ExceptionCheck()) Throw(env, sol_session_restore(Handle<sol_session>(session), path.data));
}

SOL_JNI(jlong, sessionPrivateBytes)(JNIEnv*, jclass, jlong session) { return static_cast<jlong>(sol_session_private_bytes(Handle<sol_session>(session))); }

SOL_JNI(void, sessionStart)(JNIEnv* env, jclass, jlong session, jintArray prompt, jobjectArray parts) {
  Copy<int32_t> tokens(env, prompt);
  Options options(env, parts);
  if (!env->ExceptionCheck()) Throw(env, sol_session_start(Handle<sol_session>(session), tokens.data, tokens.size, &options.raw));
}

SOL_JNI(jdoubleArray, sessionNext)(JNIEnv* env, jclass, jlong session, jobjectArray strings, jobject schedule) {
  sol_token token{};
  token.size = sizeof token;
  asked = {env, schedule};
  if (Throw(env, sol_session_next(Handle<sol_session>(session), &token))) return nullptr;
  SetString(env, strings, 0, token.text, token.text_length);
  SetString(env, strings, 1, token.action);
  const double numbers[] = {double(token.token), double(token.finish), token.logprob, token.cost, token.relative_cost, token.achieved_budget,
                            token.requested_budget, token.milliseconds};
  const jsize fixed = 8, top = static_cast<jsize>(token.num_top);
  jdoubleArray array = env->ExceptionCheck() ? nullptr : env->NewDoubleArray(fixed + 2 * top);
  if (!array) return nullptr;
  env->SetDoubleArrayRegion(array, 0, fixed, numbers);
  for (jsize i = 0; i < top; i++) {
    const double id = token.top_tokens[i];
    env->SetDoubleArrayRegion(array, fixed + i, 1, &id);
  }
  if (top > 0) env->SetDoubleArrayRegion(array, fixed + top, top, token.top_logprobs);
  return array;
}

SOL_JNI(void, sessionStop)(JNIEnv* env, jclass, jlong session) { Throw(env, sol_session_stop(Handle<sol_session>(session))); }

SOL_JNI(jdoubleArray, sessionResult)(JNIEnv* env, jclass, jlong session, jobjectArray strings) {
  sol_result result{};
  result.size = sizeof result;
  if (Throw(env, sol_session_result(Handle<sol_session>(session), &result))) return nullptr;
  SetString(env, strings, 0, result.schedule);
  SetString(env, strings, 1, result.cost_model);
  const double numbers[] = {double(result.num_tokens), double(result.prompt_tokens), double(result.cached_tokens), double(result.floored),
                            double(result.first_difference), double(result.finish), result.requested_budget, result.achieved_budget, result.expected_loss,
                            result.prompt_tokens_per_second, result.tokens_per_second, result.time_to_first_token_ms, result.fastest_tokens_per_second,
                            double(result.drafted_tokens), double(result.accepted_tokens)};
  return Numbers(env, numbers, sizeof numbers / sizeof *numbers);
}

SOL_JNI(void, sessionForward)
(JNIEnv* env, jclass, jlong session, jintArray tokens, jbyteArray action, jfloatArray logits, jfloatArray hidden) {
  Copy<int32_t> copy(env, tokens);
  String tag(env, action);
  Copy<float> row(env, logits), state(env, hidden);
  if (env->ExceptionCheck()) return;
  const sol_rows rows = {sizeof(sol_rows), 1, row.data, row.size, state.data, state.size};
  if (Throw(env, sol_session_forward(Handle<sol_session>(session), copy.data, copy.size, tag.data, &rows, nullptr))) return;
  env->SetFloatArrayRegion(logits, 0, static_cast<jsize>(row.size), row.data);
  env->SetFloatArrayRegion(hidden, 0, static_cast<jsize>(state.size), state.data);
}

SOL_JNI(jdoubleArray, sessionScore)
(JNIEnv* env, jclass, jlong session, jintArray tokens, jint context, jobjectArray parts, jobject schedule, jdoubleArray logprobs, jdoubleArray costs,
 jobjectArray strings) {
  Copy<int32_t> copy(env, tokens);
  Copy<double> scored(env, logprobs);
  Options options(env, parts);
  if (env->ExceptionCheck()) return nullptr;
  sol_scores scores{};
  scores.size = sizeof scores;
  scores.logprobs = scored.data;
  scores.logprobs_length = scored.size;
  asked = {env, schedule};
  // A negative context becomes one that is too long, which the library refuses.
  if (Throw(env, sol_session_score(Handle<sol_session>(session), copy.data, copy.size, static_cast<size_t>(context), &options.raw, &scores))) return nullptr;
  env->SetDoubleArrayRegion(logprobs, 0, static_cast<jsize>(scored.size), scored.data);
  env->SetDoubleArrayRegion(costs, 0, static_cast<jsize>(scores.num_actions), scores.costs);
  SetString(env, strings, 0, scores.schedule);
  for (size_t i = 0; i < scores.num_actions; i++) SetString(env, strings, static_cast<jsize>(i + 1), scores.actions[i]);
  const double numbers[] = {scores.achieved_budget, scores.requested_budget, scores.expected_loss, double(scores.floored)};
  return Numbers(env, numbers, 4);
}

SOL_JNI(void, sessionCancel)(JNIEnv*, jclass, jlong session) { sol_session_cancel(Handle<sol_session>(session)); }

SOL_JNI(void, sessionSetBudget)(JNIEnv* env, jclass, jlong session, jdouble budget) {
  Throw(env, sol_session_set_budget(Handle<sol_session>(session), budget));
}

SOL_JNI(void, sessionSetTokensPerSecond)(JNIEnv* env, jclass, jlong session, jdouble rate) {
  Throw(env, sol_session_set_tokens_per_second(Handle<sol_session>(session), rate));
}

SOL_JNI(jboolean, sessionBusy)(JNIEnv*, jclass, jlong session) { return sol_session_busy(Handle<sol_session>(session)) != 0; }

// ---- Governor -------------------------------------------------------------------------------------------------------------------------------------

SOL_JNI(void, governorBegin)(JNIEnv* env, jclass, jdoubleArray settings, jdoubleArray state) {
  const sol_governor_settings bounds = Settings(env, settings);
  sol_governor_state now{};
  now.size = sizeof now;
  if (!env->ExceptionCheck() && !Throw(env, sol_governor_begin(&bounds, &now))) SetState(env, state, now);
}

SOL_JNI(void, governorStep)
(JNIEnv* env, jclass, jdoubleArray settings, jdouble battery, jint charging, jdouble thermal, jdouble tokens_per_second, jdoubleArray state) {
  const sol_governor_settings bounds = Settings(env, settings);
  Copy<double> numbers(env, state);
  if (env->ExceptionCheck()) return;
  sol_governor_reading reading;
  sol_governor_reading_init(&reading, sizeof reading);
  reading.battery = battery;
  reading.charging = charging;
  reading.thermal = thermal;
  reading.tokens_per_second = tokens_per_second;
  sol_governor_state now{};
  now.size = sizeof now;
  now.budget = numbers.data[0];
  memcpy(now.reserved, numbers.data + 1, sizeof now.reserved);
  if (!Throw(env, sol_governor_step(&bounds, &reading, &now))) SetState(env, state, now);
}
