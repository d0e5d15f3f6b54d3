// Reads `tokenizer.json`. Vocabulary and merges, which are nearly all of it, go straight into compact tables; the rest becomes a small JSON value.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "text/model/vocabulary.h"

namespace sol_rt {

// Texts, one after another.
class TextList {
 public:
  void Add(std::string_view text) {
    texts_ += text;
    ends_.push_back(texts_.size());
  }
  size_t size() const { return ends_.size(); }
  std::string_view operator[](size_t i) const {
    const size_t begin = i == 0 ? 0 : ends_[i - 1];
    return std::string_view(texts_).substr(begin, ends_[i] - begin);
  }

 private:
  std::string texts_;
  std::vector<size_t> ends_;
};

struct TokenizerFile {
  nlohmann::json settings;  // the file without model.vocab and model.merges
  Vocabulary vocabulary;
  bool has_vocabulary = false, has_merges = false;
  TextList merges;  // both halves of each pair
};

// Throws SOL_ERROR_BUNDLE for what is no JSON object, too deep or too large, Unsupported for a model of another kind.
TokenizerFile ReadTokenizerFile(std::string_view json, const std::string& path);

// A field of a JSON object. Each throws SOL_ERROR_BUNDLE if the object lacks it or it has another type.
class Settings {
 public:
  Settings(const nlohmann::json& value, std::string path, std::string key) : value_(value), path_(std::move(path)), key_(std::move(key)) {}

  const nlohmann::json& value() const { return value_; }
  const std::string& key() const { return key_; }
  bool Has(const char* name) const;  // whether the field is there and not null
  Settings At(const char* name) const;
  std::vector<Settings> Items(const char* name) const;  // of an array
  std::string Text(const char* name) const;
  bool Flag(const char* name) const;
  bool Flag(const char* name, bool otherwise) const;
  uint32_t Number(const char* name) const;
  uint32_t Character(const char* name) const;  // of a text of one character
  std::string Type() const { return Text("type"); }
  [[noreturn]] void Fail(const char* name, const std::string& got, const std::string& expected) const;

 private:
  const nlohmann::json& value_;
  std::string path_, key_;
};

}  // namespace sol_rt
