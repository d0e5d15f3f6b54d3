#include "text/model/tokenizer_file.h"

#include <utility>

#include "base/error.h"
#include "text/unicode/utf8.h"
#include "text/unsupported.h"

namespace sol_rt {
namespace {

constexpr size_t kLargestFile = size_t{256} << 20;
constexpr size_t kDeepest = 32;          // lists and objects within one another
constexpr size_t kMostValues = 1 << 20;  // outside of vocabulary and merges

class Reader : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit Reader(TokenizerFile& file) : file_(file) {}

  const std::string& problem() const { return problem_; }

  bool null() override { return Value(nullptr); }
  bool boolean(bool value) override { return Value(value); }
  bool number_float(number_float_t value, const string_t&) override { return Value(value); }
  bool number_integer(number_integer_t value) override { return Value(value); }
  bool binary(binary_t&) override { return false; }

  bool number_unsigned(number_unsigned_t value) override {
    if (place_ != Place::kVocabulary) return Value(value);
    if (value > Vocabulary::kLargestId) return Fail("token id " + std::to_string(value) + " in model.vocab");
    file_.vocabulary.Add(token_, static_cast<uint32_t>(value));
    return true;
  }

  bool string(string_t& value) override {
    if (place_ == Place::kMerges) return Merge(value);
    if (place_ == Place::kPair) {
      if (++halves_ > 2) return Fail("a list of more than 2 texts in model.merges");
      file_.merges.Add(value);
      return true;
    }
    return Value(std::move(value));
  }

  bool start_object(size_t) override {
    if (place_ == Place::kRest && stack_.size() == 2 && InModel("vocab")) {
      if (file_.has_vocabulary) file_.vocabulary = Vocabulary();
      place_ = Place::kVocabulary;
      return file_.has_vocabulary = true;
    }
    return Start(nlohmann::json::object());
  }

  bool key(string_t& value) override {
    (place_ == Place::kVocabulary ? token_ : key_) = std::move(value);
    return true;
  }

  bool end_object() override {
    if (place_ == Place::kVocabulary) {
      place_ = Place::kRest;
      return true;
    }
    return End();
  }

  bool start_array(size_t) override {
    if (place_ == Place::kMerges) {
      place_ = Place::kPair;
      halves_ = 0;
      return true;
    }
    if (place_ == Place::kRest && stack_.size() == 2 && InModel("merges")) {
      if (file_.has_merges) file_.merges = TextList();
      place_ = Place::kMerges;
      return file_.has_merges = true;
    }
    if (place_ == Place::kRest && stack_.size() == 2 && InModel("vocab")) throw Unsupported("model.vocab with scores", "a model of type BPE");
    return Start(nlohmann::json::array());
  }

  bool end_array() override {
    if (place_ == Place::kPair) {
      place_ = Place::kMerges;
      return halves_ == 2 || Fail("a list of less than 2 texts in model.merges");
    }
    if (place_ == Place::kMerges) {
      place_ = Place::kRest;
      return true;
    }
    return End();
  }

  bool parse_error(size_t, const std::string&, const nlohmann::detail::exception& error) override {
    const std::string what = error.what();
    const size_t begin = what.find("] ");
    return Fail("unreadable JSON (" + (begin == std::string::npos ? what : what.substr(begin + 2)).substr(0, 120) + ")");
  }

 private:
  enum class Place { kRest, kVocabulary, kMerges, kPair };

  bool Fail(std::string problem) {
    if (problem_.empty()) problem_ = std::move(problem);
    return false;
  }

  // True if the next value is model.NAME.
  bool InModel(const char* name) const { return model_ == stack_.back() && key_ == name; }

  // Stores the next value in its place and returns the place; null if the value may not be there.
  nlohmann::json* Put(nlohmann::json value) {
    if (place_ != Place::kRest) {
      Fail(place_ == Place::kVocabulary ? "model.vocab with something other than token ids" : "model.merges with something other than texts");
      return nullptr;
    }
    if (++values_ > kMostValues) {
      Fail("more than " + std::to_string(kMostValues) + " values");
      return nullptr;
    }
    if (stack_.empty()) {
      file_.settings = std::move(value);
      return &file_.settings;
    }
    nlohmann::json& parent = *stack_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(value));
      return &parent.back();
    }
    nlohmann::json& place = parent[key_];
    place = std::move(value);
    return &place;
  }

  bool Value(nlohmann::json value) { return Put(std::move(value)) != nullptr; }

  bool Start(nlohmann::json value) {
    if (stack_.size() >= kDeepest) return Fail("JSON that nests deeper than " + std::to_string(kDeepest) + " levels");
    nlohmann::json* const place = Put(std::move(value));
    if (place == nullptr) return false;
    if (stack_.size() == 1 && key_ == "model" && place->is_object()) model_ = place;
    stack_.push_back(place);
    return true;
  }

  bool End() {
    stack_.pop_back();
    return true;
  }

  bool Merge(const std::string& text) {
    if (text.rfind("#version", 0) == 0) return true;
    const size_t space = text.find(' ');
    if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos) return Fail("a merge that is no pair: " + Brief(text));
    file_.merges.Add(std::string_view(text).substr(0, space));
    file_.merges.Add(std::string_view(text).substr(space + 1));
    return true;
  }

  TokenizerFile& file_;
  Place place_ = Place::kRest;
  std::vector<nlohmann::json*> stack_;  // open lists and objects; one that grows has no open one after the last
  nlohmann::json* model_ = nullptr;
  std::string key_, token_, problem_;
  size_t values_ = 0;
  int halves_ = 0;
};

}  // namespace

TokenizerFile ReadTokenizerFile(std::string_view json, const std::string& path) {
  if (json.size() > kLargestFile) {
    BundleFault(path, "", std::to_string(json.size()) + " bytes", "at most " + std::to_string(kLargestFile));
  }
  TokenizerFile file;
  Reader reader(file);
  if (!nlohmann::json::sax_parse(json, &reader)) {
    BundleFault(path, "", "an unreadable tokenizer (" + reader.problem() + ")", "a tokenizers file");
  }
  if (!file.settings.is_object()) BundleFault(path, "", "an unreadable tokenizer (no JSON object)", "a tokenizers file");
  return file;
}

bool Settings::Has(const char* name) const {
  if (!value_.is_object()) return false;
  const auto found = value_.find(name);
  return found != value_.end() && !found->is_null();
}

void Settings::Fail(const char* name, const std::string& got, const std::string& expected) const {
  BundleFault(path_, key_.empty() ? name : key_ + "." + name, got, expected);
}

Settings Settings::At(const char* name) const {
  if (!Has(name)) Fail(name, "nothing", "a value");
  return Settings(value_.at(name), path_, key_.empty() ? name : key_ + "." + name);
}

std::vector<Settings> Settings::Items(const char* name) const {
  const Settings list = At(name);
  if (!list.value().is_array()) Fail(name, list.value().type_name(), "a list");
  std::vector<Settings> items;
  for (size_t i = 0; i < list.value().size(); ++i) items.emplace_back(list.value()[i], path_, list.key() + "[" + std::to_string(i) + "]");
  return items;
}

std::string Settings::Text(const char* name) const {
  const Settings field = At(name);
  if (!field.value().is_string()) Fail(name, field.value().type_name(), "a text");
  return field.value().get<std::string>();
}

bool Settings::Flag(const char* name) const {
  const Settings field = At(name);
  if (!field.value().is_boolean()) Fail(name, field.value().type_name(), "true or false");
  return field.value().get<bool>();
}

bool Settings::Flag(const char* name, bool otherwise) const { return Has(name) ? Flag(name) : otherwise; }

uint32_t Settings::Number(const char* name) const {
  const Settings field = At(name);
  if (!field.value().is_number_unsigned() || field.value().get<uint64_t>() > INT32_MAX) Fail(name, field.value().dump().substr(0, 40), "a number");
  return static_cast<uint32_t>(field.value().get<uint64_t>());
}

uint32_t Settings::Character(const char* name) const {
  const std::string text = Text(name);
  size_t end = 0;
  if (text.empty()) Fail(name, "an empty text", "one character");
  const uint32_t character = NextCharacter(text, end);
  if (end != text.size()) Fail(name, Brief(text), "one character");
  return character;
}

}  // namespace sol_rt
