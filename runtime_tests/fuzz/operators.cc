// Runs the CPU operators on calls that byte strings describe (operators_case.h), without ONNX Runtime, under a sanitizer.
//
//   operators replay FILE…               runs each file
//   operators check COUNT SEED THREADS   runs COUNT calls without damages, each on one thread and on THREADS: no bit may differ
//   operators fuzz SECONDS SEED FOLDER FILE…
//                                        mutates the files and what it finds. FOLDER/current always holds the string that runs, and
//                                        FOLDER/found gets those that reach something new
//
// A call without damages must run. One with damages must run, or end in an error of one line that names the operator.

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <new>
#include <string>
#include <unordered_set>
#include <vector>

#include "fuzz/operators_case.h"

namespace {

using String = std::vector<uint8_t>;

constexpr size_t kMostBytes = 192;
constexpr unsigned kMostSeconds = 60;  // of one call

// Edges of the operators' code that have run; the compiler calls __sanitizer_cov_trace_pc at each.
constexpr size_t kEdges = size_t{1} << 16;
bool g_edges[kEdges];

// Of scratch memory: how many are granted; -1 for all.
std::atomic<int> g_allocations{-1};

[[noreturn]] void Fail(const std::string& what, const std::string& detail) {
  std::fprintf(stderr, "operators: %s: %s\n", what.c_str(), detail.c_str());
  std::abort();
}

std::string Described(const fuzz::Case& call) {
  std::string text = call.node.op;
  for (const auto& attribute : call.node.attributes) {
    text += " " + attribute.name + "=";
    if (const auto* number = std::get_if<int64_t>(&attribute.value)) text += std::to_string(*number);
    if (const auto* number = std::get_if<float>(&attribute.value)) text += std::to_string(*number);
    if (const auto* name = std::get_if<std::string>(&attribute.value)) text += name->substr(0, 20);
  }
  for (const auto& input : call.node.inputs) {
    text += " " + input.name;
    for (const int64_t length : input.value != nullptr ? input.value->info.dims : std::vector<int64_t>{}) text += ":" + std::to_string(length);
  }
  return text;
}

// Part of an operator's error that separates one refusal from another.
uint64_t HashOf(const std::string& message) {
  uint64_t hash = 1469598103934665603u;
  for (const char c : message) {
    if (c < '0' || c > '9') hash = (hash ^ static_cast<uint8_t>(c)) * 1099511628211u;
  }
  return hash;
}

struct Counts {
  size_t calls = 0, ran = 0, refused = 0, left_out = 0;
};

// Runs the call of a string, and cuts off what the call is not made of; returns what it said.
std::string RunOnce(String& string, Counts& counts) {
  const fuzz::Case call(string.data(), string.size());
  string.resize(call.Used());
  ++counts.calls;
  if (call.too_large) {
    ++counts.left_out;
    return "";
  }
  alarm(kMostSeconds);
  g_allocations = call.allocations;
  const stand_in::Result result = stand_in::Run(call.node, call.threads);
  g_allocations = -1;
  alarm(0);
  switch (result.kind) {
    case stand_in::Result::kNoOperator: ++counts.left_out; break;
    case stand_in::Result::kRan: ++counts.ran; break;
    default: ++counts.refused;
  }
  if (result.kind != stand_in::Result::kRan && !call.damaged) Fail("a sound call is refused", result.message + " " + Described(call));
  const std::string& message = result.message;
  const bool named = message.compare(0, call.node.op.size(), call.node.op) == 0 || message.compare(0, 7, "output:") == 0;
  if (!message.empty() && (!named || message.size() > 400 || message.find('\n') != std::string::npos)) {
    Fail("an error that is not one line of its operator", message);
  }
  return message;
}

String Read(const char* path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) Fail("cannot be read", path);
  return String(std::istreambuf_iterator<char>(file), {});
}

int Replay(int count, char** paths) {
  Counts counts;
  for (int i = 0; i < count; ++i) {
    std::fprintf(stderr, "%s: ", paths[i]);
    String string = Read(paths[i]);
    const std::string message = RunOnce(string, counts);
    std::fprintf(stderr, "%s\n", message.empty() ? "ran, or was left out" : message.c_str());
  }
  std::printf("%zu calls, %zu ran, %zu refused\n", counts.calls, counts.ran, counts.refused);
  return 0;
}

String Any(fuzz::Random& random) {
  String string(kMostBytes);
  for (uint8_t& byte : string) byte = static_cast<uint8_t>(random.Next());
  return string;
}

// Without damages the two runs must give the same bits, whatever the numbers are.
int Check(size_t count, uint64_t seed, size_t threads) {
  fuzz::Random random(seed);
  size_t checked = 0;
  for (size_t i = 0; i < count; ++i) {
    const String string = Any(random);
    std::vector<std::vector<std::string>> outputs;
    for (const size_t members : {size_t{1}, threads}) {
      const fuzz::Case call(string.data(), string.size(), false);
      const stand_in::Result result = stand_in::Run(call.node, members);
      if (result.kind != stand_in::Result::kRan) Fail("a sound call is refused", result.message + " " + Described(call));
      outputs.emplace_back();
      for (size_t o = 0; o < call.node.outputs.size(); ++o) {
        const OrtValue* value = call.node.outputs[o].bound != nullptr ? call.node.outputs[o].bound : result.outputs[o].get();
        outputs.back().emplace_back(value->data.get(), value->Bytes());
      }
      if (outputs.size() == 2 && outputs[0] != outputs[1]) Fail("threads change the result", Described(call));
    }
    ++checked;
  }
  std::printf("%zu calls\n", checked);
  return 0;
}

// A string near one or two of the corpus.
String Mutated(const std::vector<String>& corpus, fuzz::Random& random) {
  if (corpus.empty() || random.Below(50) == 0) return Any(random);
  String string = corpus[random.Below(corpus.size())];
  for (size_t left = 1 + random.Below(5); left > 0; --left) {
    const size_t at = random.Below(string.size() + 1);
    switch (random.Below(7)) {
      case 0:
        if (string.size() < kMostBytes) string.insert(string.begin() + static_cast<std::ptrdiff_t>(at), static_cast<uint8_t>(random.Next()));
        break;
      case 1:
        if (at < string.size()) string.erase(string.begin() + static_cast<std::ptrdiff_t>(at));
        break;
      case 2: {
        const String& other = corpus[random.Below(corpus.size())];
        for (size_t i = at; i < std::min(other.size(), string.size()); ++i) string[i] = other[i];
        break;
      }
      case 3:
        if (at < string.size()) string[at] ^= static_cast<uint8_t>(1u << random.Below(8));
        break;
      case 4:
        for (size_t more = random.Below(12); more > 0 && string.size() < kMostBytes; --more) string.push_back(static_cast<uint8_t>(random.Next()));
        break;
      default:
        if (at < string.size()) string[at] = static_cast<uint8_t>(random.Next());
    }
  }
  return string;
}

int Fuzz(double seconds, uint64_t seed, const std::filesystem::path& folder, std::vector<String> corpus) {
  const std::string current = folder / "current";
  std::filesystem::create_directories(folder / "found");
  // A mapped file keeps its bytes when this process ends in the middle of a call.
  const int file = open(current.c_str(), O_RDWR | O_CREAT | O_TRUNC, 0644);
  if (file < 0 || ftruncate(file, kMostBytes + 8) != 0) Fail("cannot be written", current);
  auto* shown = static_cast<uint8_t*>(mmap(nullptr, kMostBytes + 8, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0));
  if (shown == MAP_FAILED) Fail("cannot be mapped", current);
  fuzz::Random random(seed);
  std::unordered_set<uint64_t> known;
  std::vector<bool> reached(kEdges);
  Counts counts;
  size_t edges = 0;
  const auto run = [&](String& string) {
    const uint64_t size = string.size();
    std::memcpy(shown + 8, string.data(), string.size());
    std::memcpy(shown, &size, sizeof(size));
    std::fill(std::begin(g_edges), std::end(g_edges), false);
    bool fresh = known.insert(HashOf(RunOnce(string, counts))).second;
    for (size_t i = 0; i < kEdges; ++i) {
      if (!g_edges[i] || reached[i]) continue;
      reached[i] = fresh = true;
      ++edges;
    }
    return fresh;
  };
  for (String& string : corpus) {
    string.resize(std::min(string.size(), kMostBytes));
    run(string);
  }
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  while (std::chrono::steady_clock::now() < end) {
    String string = Mutated(corpus, random);
    if (!run(string)) continue;
    std::ofstream(folder / "found" / (std::to_string(seed) + "-" + std::to_string(counts.calls)), std::ios::binary)
        .write(reinterpret_cast<const char*>(string.data()), static_cast<std::streamsize>(string.size()));
    corpus.push_back(std::move(string));
  }
  std::printf("%zu calls, %zu ran, %zu refused, %zu left out; %zu strings, %zu edges, %zu errors\n", counts.calls, counts.ran, counts.refused,
              counts.left_out, corpus.size(), edges, known.size());
  return 0;
}

}  // namespace

// Memory with an alignment is the operators' scratch memory.
void* operator new(size_t size, std::align_val_t alignment) {
  if (g_allocations >= 0 && g_allocations-- == 0) throw std::bad_alloc();
  const auto unit = static_cast<size_t>(alignment);
  void* memory = std::aligned_alloc(unit, (size + unit - 1) / unit * unit);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }

extern "C" void __sanitizer_cov_trace_pc() {
  const auto at = reinterpret_cast<uintptr_t>(__builtin_return_address(0));
  g_edges[(at ^ at >> 16) % kEdges] = true;
}

int main(int count, char** arguments) {
  const std::string mode = count > 1 ? arguments[1] : "";
  if (mode == "replay") return Replay(count - 2, arguments + 2);
  if (mode == "check" && count == 5) {
    return Check(std::strtoul(arguments[2], nullptr, 10), std::strtoull(arguments[3], nullptr, 10), std::strtoul(arguments[4], nullptr, 10));
  }
  if (mode == "fuzz" && count >= 5) {
    std::vector<String> corpus;
    for (int i = 5; i < count; ++i) corpus.push_back(Read(arguments[i]));
    return Fuzz(std::strtod(arguments[2], nullptr), std::strtoull(arguments[3], nullptr, 10), arguments[4], std::move(corpus));
  }
  std::fprintf(stderr, "usage: operators replay FILE... | check COUNT SEED THREADS | fuzz SECONDS SEED FOLDER FILE...\n");
  return 2;
}
