// Reads one file or folder a line and prints `ok`, or the error's message:
//   bundle_check config|graph|bundle|fast|action|sha256
// `config`, `graph` and `sha256` take paths of a file, `bundle` and `fast` a folder, the latter without hashes; `action` takes a tag.
#include <cstdio>
#include <iostream>
#include <string>

#include "base/error.h"
#include "base/file/file.h"
#include "bundle/action.h"
#include "bundle/bundle.h"
#include "bundle/config/config_reader.h"
#include "bundle/graph_file.h"
#include "bundle/weights.h"

using namespace sol_rt;

namespace {

void CheckBundle(const std::string& folder, sol_verify verify) {
  Bundle bundle = Bundle::Open(folder, verify);
  const Weights weights(bundle);
  for (const auto& [key, variant] : bundle.config().variants) weights.Check(bundle.Read(variant.file), variant.file);
  if (bundle.config().policy) weights.Check(bundle.Read(bundle.config().policy->file), bundle.config().policy->file);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const std::string kind = argv[1];
  std::string line;
  while (std::getline(std::cin, line)) {
    try {
      if (kind == "action") {
        const Action action = Action::Parse(line);
        std::printf("ok %s %d %d %d\n", action.Tag().c_str(), action.kv, action.channels, action.bits);
        continue;
      }
      if (kind == "config") ReadConfig(ReadFile(line, 1 << 26), line);
      if (kind == "graph") ExternalTensors(ReadFile(line, 1 << 30), line);
      if (kind == "bundle") CheckBundle(line, SOL_VERIFY_ALL);
      if (kind == "fast") CheckBundle(line, SOL_VERIFY_NONE);
      std::printf("%s\n", kind == "sha256" ? Sha256OfFile(line).c_str() : "ok");
    } catch (const Error& error) {
      std::printf("%s\n", error.what());
    }
  }
  return 0;
}
