#include "text/pipeline/post_processor.h"

#include "base/error.h"
#include "text/unsupported.h"

namespace sol_rt {
namespace {

constexpr int kDeepest = 8;
constexpr size_t kMostPieces = 256;

// The id in a pair of a token's text and id.
int32_t PairedId(const Settings& settings, const char* name) {
  const nlohmann::json& pair = settings.At(name).value();
  if (!pair.is_array() || pair.size() != 2 || !pair[1].is_number_unsigned() || pair[1].get<uint64_t>() > INT32_MAX) {
    settings.Fail(name, pair.dump(-1, ' ', true).substr(0, 60), "a token's text and id");
  }
  return pair[1].get<int32_t>();
}

}  // namespace

PostProcessor::PostProcessor(const Settings& file) {
  if (file.Has("post_processor")) Read(file.At("post_processor"), 0);
  if (!has_template_) template_ = {kText};
}

void PostProcessor::Read(const Settings& settings, int depth) {
  if (depth > kDeepest) settings.Fail("type", "sequences that nest too deeply", "at most " + std::to_string(kDeepest));
  const std::string type = settings.Type();
  if (type == "Sequence") {
    for (const Settings& item : settings.Items("processors")) Read(item, depth + 1);
    return;
  }
  if (type == "ByteLevel") return;  // changes offsets alone
  if (type != "TemplateProcessing" && type != "RobertaProcessing" && type != "BertProcessing") {
    throw Unsupported("a post_processor of type " + Brief(type), "TemplateProcessing, RobertaProcessing, BertProcessing, ByteLevel or Sequence");
  }
  if (has_template_) throw Unsupported("two post_processors that add tokens", "one");
  has_template_ = true;
  if (type == "TemplateProcessing") return ReadTemplate(settings);
  template_ = {PairedId(settings, "cls"), kText, PairedId(settings, "sep")};
}

void PostProcessor::ReadTemplate(const Settings& settings) {
  for (const Settings& piece : settings.Items("single")) {
    if (piece.Has("Sequence")) {
      const std::string id = piece.At("Sequence").Text("id");
      if (id != "A") throw Unsupported("a template for one text with the text " + Brief(id), "A");
      template_.push_back(kText);
      continue;
    }
    const std::string name = piece.At("SpecialToken").Text("id");
    const Settings tokens = settings.At("special_tokens");
    if (!tokens.Has(name.c_str())) settings.Fail("single", "the special token " + Brief(name), "one of special_tokens");
    for (const Settings& id : tokens.At(name.c_str()).Items("ids")) {
      if (!id.value().is_number_unsigned() || id.value().get<uint64_t>() > INT32_MAX) {
        settings.Fail("special_tokens", "an id that is no number", "token ids");
      }
      template_.push_back(id.value().get<int32_t>());
    }
    if (template_.size() > kMostPieces) settings.Fail("single", "more than " + std::to_string(kMostPieces) + " pieces", "fewer");
  }
}

std::vector<int32_t> PostProcessor::Run(std::vector<int32_t> tokens, bool add_special) const {
  std::vector<int32_t> made;
  made.reserve(tokens.size() + template_.size());
  for (const int32_t piece : template_) {
    if (piece == kText) made.insert(made.end(), tokens.begin(), tokens.end());
    else if (add_special) made.push_back(piece);
  }
  return made;
}

}  // namespace sol_rt
