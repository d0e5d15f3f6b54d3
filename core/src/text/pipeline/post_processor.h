// Adds what the model wants around a text, such as a token for its beginning: the `post_processor` of tokenizer.json.
#pragma once

#include <cstdint>
#include <vector>

#include "text/model/tokenizer_file.h"

namespace sol_rt {

class PostProcessor {
 public:
  // Throws Unsupported for a step of another kind, or SOL_ERROR_BUNDLE for a damaged one.
  explicit PostProcessor(const Settings& file);

  std::vector<int32_t> Run(std::vector<int32_t> tokens, bool add_special) const;

 private:
  static constexpr int32_t kText = -1;

  void Read(const Settings& settings, int depth);
  void ReadTemplate(const Settings& settings);

  std::vector<int32_t> template_;  // tokens, and kText where the text goes
  bool has_template_ = false;
};

}  // namespace sol_rt
