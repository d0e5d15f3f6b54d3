// A bundle folder that was checked as far as that goes without running it (docs/reference/bundle-details.md, section 4).
//
// Each small file is read once, when the bundle is opened, and what was hashed is kept for whoever needs it: graphs, tokenizer and policy are needed later,
// and the bundle may have been replaced meanwhile.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>

#include "base/file/file.h"
#include "bundle/config/config.h"
#include "sol_rt.h"

namespace sol_rt {

// The files that the core itself reads, whoever has the engine.
constexpr const char* kTokenizerFile = "tokenizer.json";
constexpr const char* kChatFile = "chat_segments.json";
constexpr const char* kGenerationConfigFile = "generation_config.json";

// Gets what is being done, and how far it is in bytes.
using Progress = std::function<void(const char* what, uint64_t done, uint64_t total)>;

// Compares dims with the tensors that repeat them: an edited dim must not misread the cache later. Throws SOL_ERROR_BUNDLE, which names `path`.
void CheckShapes(const std::string& path, const Config& config);

class Bundle {
 public:
  // Throws SOL_ERROR_BUNDLE. Without `whole`, files that only an engine reads, weights and graphs, may be elsewhere: they are not looked at.
  static Bundle Open(const std::string& folder, sol_verify verify, const Progress& progress = nullptr, bool whole = true);

  const std::string& path() const { return path_; }
  const Config& config() const { return config_; }
  const std::string& identity() const { return identity_; }  // sha256 of sol_config.json: it holds the hash of every other file
  const std::optional<FileState>& weights_state() const { return weights_state_; }  // of the weights file whose hash was compared

  bool Has(const std::string& name) const { return config_.files.count(name) > 0; }
  std::string Path(const std::string& name) const { return JoinPath(path_, name); }
  // Throws SOL_ERROR_USAGE if a `what` that is written to `path` would overwrite a file of the bundle, also through a link.
  void RequireOutside(const std::string& what, const std::string& path) const;
  // Hands over the content of a file of the bundle other than the weights. Reads what is not kept, as no content is handed over twice: throws
  // SOL_ERROR_BUNDLE if that was replaced since the bundle was opened. For one thread at a time.
  std::string Read(const std::string& name);
  void GiveBack(const std::string& name, std::string content) { kept_[name] = std::move(content); }  // what `Read` handed over

 private:
  std::string path_;
  Config config_;
  std::string identity_;
  sol_verify verify_ = SOL_VERIFY_SMALL;
  std::map<std::string, std::string> kept_;  // contents by name, of files that nobody has asked for yet
  std::optional<FileState> weights_state_;
};

}  // namespace sol_rt
