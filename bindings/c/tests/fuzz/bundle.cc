// Gives any bytes to the readers of a bundle's files: they take them or throw an Error. The first byte chooses the reader.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "base/error.h"
#include "bundle/action.h"
#include "bundle/bundle.h"
#include "bundle/config/config_reader.h"
#include "bundle/graph_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  try {
    switch (data[0] % 3) {
      case 0:
        sol_rt::CheckShapes("sol_config.json", sol_rt::ReadConfig(rest, "sol_config.json"));
        break;
      case 1:
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
