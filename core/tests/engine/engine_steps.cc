// Runs the engine by commands from stdin, for tests that compare it with Python's:
//   engine_steps LIBRARY NATIVE THREADS RESULTS
// With `host:` before LIBRARY the program is a host that has opened ONNX Runtime and made an environment without shared threads.
// Commands, one a line; numbers of engines are their order:
//   load FOLDER [MAX_CONTEXT]        opens a model; later commands are about it
//   choose N GAIN...                 which of N settings of the operators to take, by the gains of every round
//   fit [TOKENS PAGES MS]...         appends the line of a cost table that is fitted to timings: fixed, per_token, per_page, error
//   engine                           makes an engine on it, and uses that one
//   use N                            uses engine N
//   forward ACTION TOKEN...          appends logits and hidden state to RESULTS, float32
//   together [N ACTION TOKEN]...     runs a token on each of several engines and answers in how many runs; appends the results of each, or answers the
//                                    error of the first that has one
//   cancel N                         cancels the next `forward` when it asks for the Nth time whether it is to end
//   decide TOKEN PREVIOUS STEP S...  asks the policy with the last hidden state; appends its logits; answers 1 where the core ran it, 0 where ONNX
//                                    Runtime did
//   reset                            forgets the policy's episode
//   truncate N | save FILE | restore FILE | drop
//   cycles N FOLDER                  loads a bundle, runs two steps and drops it, N times
//   threads N STEPS                  runs the same steps on an engine in each of N threads; answers how many threads got other numbers than the first
// Every command is answered by a line: `ok NUMBER`, or `error CODE MESSAGE`.
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/file/atomic_file.h"
#include "budget/measure/profile.h"
#include "budget/measure/tune_operators.h"
#include "engine/ort/ort_model.h"
#include "engine/two_layer_policy.h"
#include "generate/model.h"

using namespace sol_rt;

namespace {

struct Machine {
  std::shared_ptr<Runtime> runtime;
  std::shared_ptr<OrtModel> graphs;
  std::unique_ptr<Model> model;
  std::vector<std::unique_ptr<Engine>> engines;
  size_t current = 0;
  std::unique_ptr<PolicyRunner> policy;
  std::vector<float> hidden;
  std::ofstream results;
  int asks = 0;  // until the next `forward` is cancelled; 0: never

  Engine& engine() { return *engines.at(current); }
  void Append(const float* values, size_t count) {
    results.write(reinterpret_cast<const char*>(values), static_cast<std::streamsize>(count * sizeof(float)));
    results.flush();
  }

  void Load(const std::string& folder, const ModelOptions& options) {
    const auto bundle = std::make_shared<Bundle>(Bundle::Open(folder, SOL_VERIFY_SMALL));
    graphs = std::make_shared<OrtModel>(runtime, bundle);
    model = std::make_unique<Model>(bundle, graphs, options);
  }

  // The last logits of a prompt and of steps under every action in turn.
  std::vector<float> Steps(int steps) {
    const std::unique_ptr<Engine> made = model->factory()->MakeEngine(model->max_context());
    const Config& config = model->config();
    const int32_t prompt[] = {3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
    StepOutput output = made->Forward(prompt, 10, config.dense);
    for (int i = 0; i < steps; ++i) {
      const int32_t token = output.distribution.top;
      output = made->Forward(&token, 1, config.actions[static_cast<size_t>(i) % config.actions.size()].action);
    }
    return std::vector<float>(output.distribution.logits, output.distribution.logits + output.distribution.size);
  }

  int64_t Run(const std::string& name, std::istream& line) {
    if (name == "load") {
      std::string folder;
      ModelOptions options;
      line >> folder >> options.max_context;
      if (!line) options.max_context = 0;
      Load(folder, options);
      return model->max_context();
    }
    if (name == "costs") {  // returns the settings of the operators
      std::string file;
      line >> file;
      model->SetCost(ReadMeasuredCost(model->config(), model->identity(), file));
      const Tuning tuning = graphs->tuning();
      return int64_t{tuning.copies} << 48 | int64_t{tuning.cache_level} << 40 | int64_t{tuning.members} << 24 | tuning.row_bytes_ahead;
    }
    if (name == "choose") {  // number of settings, then the gains of each round
      size_t settings;
      line >> settings;
      std::vector<std::vector<double>> gains(settings);
      size_t place = 0;
      for (double gain; line >> gain;) gains[place++ % settings].push_back(gain);
      return static_cast<int64_t>(ChooseSetting(gains));
    }
    if (name == "fit") {  // tokens, pages and milliseconds of each timing; its results are the coefficients and the error
      std::vector<Sample> samples;
      for (Sample each{}; line >> each.tokens >> each.pages >> each.ms;) samples.push_back(each);
      const CostTable::Line fitted = FitLine(samples);
      for (const double part : {fitted.fixed, fitted.per_token, fitted.per_page, fitted.error}) {
        const auto written = static_cast<float>(part);
        Append(&written, 1);
      }
      return 4;
    }
    if (name == "engine") {
      engines.push_back(model->factory()->MakeEngine(model->max_context()));
      current = engines.size() - 1;
      return static_cast<int64_t>(current);
    }
    if (name == "use") {
      line >> current;
      return engine().length();
    }
    if (name == "forward") {
      std::string tag;
      line >> tag;
      std::vector<int32_t> tokens;
      for (int32_t token; line >> token;) tokens.push_back(token);
      const int last = std::exchange(asks, 0);
      int asked = 0;
      const StepOutput output = engine().Forward(tokens.data(), tokens.size(), Action::Parse(tag), [&] { return ++asked == last; });
      hidden.assign(output.hidden, output.hidden + engine().config().model.hidden_size);
      Append(output.distribution.logits, static_cast<size_t>(output.distribution.size));
      Append(hidden.data(), hidden.size());
      return output.distribution.top;
    }
    if (name == "together") {
      std::vector<RoundToken> round;
      size_t at;
      std::string tag;
      for (int32_t token; line >> at >> tag >> token;) round.push_back({engines.at(at).get(), token, Action::Parse(tag)});
      const size_t runs = Engine::ForwardTogether(round);
      for (const RoundToken& one : round) {
        if (one.error) std::rethrow_exception(one.error);
        Append(one.output.distribution.logits, static_cast<size_t>(one.output.distribution.size));
        Append(one.output.hidden, static_cast<size_t>(one.engine->config().model.hidden_size));
      }
      return static_cast<int64_t>(runs);
    }
    if (name == "cancel") {
      line >> asks;
      return 0;
    }
    if (name == "decide") {
      int32_t token;
      int64_t previous, step;
      line >> token >> previous >> step;
      std::vector<float> scalars;
      for (float scalar; line >> scalar;) scalars.push_back(scalar);
      if (!policy) policy = graphs->MakePolicyRunner();
      const std::vector<float>& logits = policy->Decide({hidden.data(), token, &scalars, previous, step});
      Append(logits.data(), logits.size());
      return dynamic_cast<const TwoLayerPolicy*>(policy.get()) != nullptr ? 1 : 0;
    }
    if (name == "reset") {
      policy->Reset();
      return 0;
    }
    if (name == "truncate") {
      int64_t length;
      line >> length;
      engine().Truncate(length);
      return length;
    }
    std::string file;
    if (name == "save") {
      line >> file;
      AtomicFile made(file);
      engine().Save(made.stream());
      made.Commit();
      return engine().length();
    }
    if (name == "restore") {
      line >> file;
      std::ifstream stream(file, std::ios::binary);
      engine().Restore(stream);
      return engine().length();
    }
    if (name == "drop") {
      engines.clear();
      policy.reset();
      model.reset();
      graphs.reset();
      return 0;
    }
    if (name == "cycles") {
      int count;
      line >> count >> file;
      for (int i = 0; i < count; ++i) {
        Load(file, {});
        const std::unique_ptr<Engine> made = model->factory()->MakeEngine(model->max_context());
        const int32_t tokens[] = {3, 4, 5};
        made->Forward(tokens, 3, model->config().dense);
        made->Forward(tokens, 1, model->config().dense);
      }
      return count;
    }
    if (name == "threads") {
      size_t count;
      int steps;
      line >> count >> steps;
      std::vector<std::vector<float>> logits(count);
      std::vector<std::thread> threads;
      for (size_t i = 0; i < count; ++i) threads.emplace_back([&, i] { logits[i] = Steps(steps); });
      for (std::thread& thread : threads) thread.join();
      return std::count_if(logits.begin(), logits.end(), [&](const auto& got) { return got != logits[0]; });
    }
    UsageFault("unknown command " + name);
  }
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) return 2;
  Machine machine;
  RuntimeOptions options;
  options.ort_library = argv[1];
  OrtEnv* host_env = nullptr;
  const OrtApi* host_api = nullptr;
  if (options.ort_library.compare(0, 5, "host:") == 0) {
    const OrtApiBase* const base = FindOrt(nullptr, options.ort_library.substr(5));
    host_api = OrtFunctions(base);
    Check(host_api, host_api->CreateEnv(ORT_LOGGING_LEVEL_FATAL, "host", &host_env), "host");
    options.ort_api_base = base;
    options.ort_library.clear();
  }
  options.native_operators = std::string(argv[2]) == "1";
  options.threads = std::stoi(argv[3]);
  machine.results.open(argv[4], std::ios::binary);
  std::string text;
  try {
    machine.runtime = std::make_shared<Runtime>(options);
    std::printf("ok %s\n", machine.runtime->version().c_str());
  } catch (const Error& error) {
    std::printf("error %d %s\n", error.code(), error.what());
    return 1;
  }
  std::fflush(stdout);
  while (std::getline(std::cin, text)) {
    std::istringstream line(text);
    std::string name;
    line >> name;
    try {
      std::printf("ok %lld\n", static_cast<long long>(machine.Run(name, line)));
    } catch (const Error& error) {
      std::printf("error %d %s\n", error.code(), error.what());
    }
    std::fflush(stdout);
  }
  machine.policy.reset();
  machine.engines.clear();
  machine.model.reset();
  machine.graphs.reset();
  machine.runtime.reset();
  if (host_env != nullptr) host_api->ReleaseEnv(host_env);
  return 0;
}
