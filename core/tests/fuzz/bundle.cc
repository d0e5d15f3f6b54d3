// Gives any bytes to the readers of a bundle's files: they take them or throw an Error. The first byte chooses the reader.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>

#include "base/error.h"
#include "bundle/action.h"
#include "bundle/bundle.h"
#include "bundle/config/config_reader.h"
#include "bundle/graph_file.h"
#include "fuzz/json_mutator.h"

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  sol_rt::JsonMutator mutator(seed);
  if (size < 2 || data[0] % 3 != 0 || mutator.Below(4) == 0) return LLVMFuzzerMutate(data, size, max_size);
  const std::string changed = mutator.Changed({reinterpret_cast<const char*>(data) + 1, size - 1});
  if (changed.empty() || changed.size() >= max_size) return LLVMFuzzerMutate(data, size, max_size);
  std::memcpy(data + 1, changed.data(), changed.size());
  return 1 + changed.size();
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  try {
    switch (data[0] % 3) {
      case 0:
        sol_rt::CheckShapes("sol_config.json", sol_rt::ReadConfig(rest, "sol_config.json"));
        break;
      case 1:
        sol_rt::ReadSmallGraph(rest);
        sol_rt::ExternalTensors(rest, "model.onnx");
        break;
      default: {
        const sol_rt::Action action = sol_rt::Action::Parse(rest);
        if (!(sol_rt::Action::Parse(action.Tag()) == action)) std::abort();
      }
    }
  } catch (const sol_rt::Error&) {
    return 0;
  }
  return 0;
}
