// The weights file, mapped once for all sessions, and the check that a graph refers to it as the config says.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/file/file.h"
#include "bundle/bundle.h"
#include "bundle/graph_file.h"

namespace sol_rt {

class Weights {
 public:
  // `bundle` must outlive the weights. Throws SOL_ERROR_BUNDLE if the file cannot be mapped, or is another one than the one that was hashed.
  explicit Weights(const Bundle& bundle);

  const uint8_t* data(const TensorEntry& entry) const { return data_ + entry.offset; }
  uint64_t size() const { return static_cast<uint64_t>(mapped_.size); }  // bytes

  // Throws SOL_ERROR_BUNDLE if the mapped file was written to or cut off since it was mapped. A file that takes its place under the same name is no change.
  void RequireUnchanged() const;
  // The same also if the name of the weights file leads to another file: for sessions that read it by its name.
  void RequireInPlace() const;
  // Every weight that a graph file refers to. Throws SOL_ERROR_BUNDLE where one differs from the config.
  std::vector<ExternalTensor> Check(std::string_view graph, const std::string& file) const;

 private:
  const Bundle& bundle_;
  std::string path_;
  OpenFile file_;
  FileState mapped_;
  const uint8_t* data_;
};

}  // namespace sol_rt
