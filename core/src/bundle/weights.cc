#include "bundle/weights.h"

#include <memory>
#include <system_error>

#include "base/error.h"
#include "base/text/printable.h"

namespace sol_rt {
namespace {

std::string Describe(const std::string& dtype, const std::vector<int64_t>& shape, int64_t offset, int64_t size) {
  std::string text = dtype + " [";
  for (size_t i = 0; i < shape.size() && text.size() < 1000; ++i) text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  return text + "] at " + std::to_string(offset) + ", " + std::to_string(size) + " bytes";
}

template <class F>
auto Mapped(const std::string& path, F&& f) {
  try {
    return f();
  } catch (const std::system_error& error) {
    BundleFault(path, "", Reason(error), "a file that can be mapped");
  }
}

}  // namespace

Weights::Weights(const Bundle& bundle)
    : bundle_(bundle),
      path_(bundle.Path(bundle.config().weights_file)),
      file_(Mapped(path_, [&] { return OpenFile(path_); })),
      mapped_(Mapped(path_, [&] { return file_.State(); })) {
  const int64_t expected = bundle.config().files.at(bundle.config().weights_file).bytes;
  if (bundle.weights_state() && !(*bundle.weights_state() == mapped_)) {
    BundleFault(path_, "", "another file", "the file whose hash was compared", "the bundle was replaced meanwhile: load it again");
  }
  if (mapped_.size != expected) {
    BundleFault(path_, "", std::to_string(mapped_.size) + " bytes", std::to_string(expected) + " bytes", "the bundle was replaced meanwhile: load it again");
  }
  data_ = Mapped(path_, [&] { return file_.Map(static_cast<size_t>(mapped_.size)); });
}

void Weights::RequireUnchanged() const {
  const FileState now = Mapped(path_, [&] { return file_.State(); });
  if (now.SameContent(mapped_)) return;
  BundleFault(path_, "", "other content", "the file as it was loaded",
              "it was written to while in use: load the bundle again, and replace its files by renaming");
}

void Weights::RequireInPlace() const {
  RequireUnchanged();
  bool same = false;
  try {
    same = StateOf(path_).SameFile(mapped_);
  } catch (const std::system_error&) {
    same = false;
  }
  if (!same) BundleFault(path_, "", "another file", "the file as it was loaded", "load the bundle again");
}

std::vector<ExternalTensor> Weights::Check(std::string_view graph, const std::string& file) const {
  const Config& config = bundle_.config();
  const std::string path = bundle_.Path(file), hint = "the graph belongs to another bundle: export again";
  std::vector<ExternalTensor> tensors = ExternalTensors(graph, path);
  for (const ExternalTensor& tensor : tensors) {
    const auto found = config.tensors.find(tensor.name);
    if (found == config.tensors.end() || tensor.location != config.weights_file) {
      BundleFault(path, tensor.name, "a weight in " + Quoted(tensor.location), "a tensor of " + config.weights_file, hint);
    }
    const TensorEntry& stored = found->second;
    if (tensor.dtype != stored.dtype || tensor.shape != stored.shape || tensor.offset != stored.offset || tensor.length != stored.bytes) {
      BundleFault(path, tensor.name, Describe(tensor.dtype, tensor.shape, tensor.offset, tensor.length),
                  Describe(stored.dtype, stored.shape, stored.offset, stored.bytes), hint);
    }
  }
  return tensors;
}

}  // namespace sol_rt
