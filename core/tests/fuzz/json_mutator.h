// Mutates JSON as a tree: bytes changed at random seldom leave a text that a strict reader follows to its later checks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/text/json.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

namespace sol_rt {

class JsonMutator {
 public:
  explicit JsonMutator(unsigned seed) : random_(seed) {}

  size_t Below(size_t limit) { return random_() % limit; }

  // The text with one to three changes; empty for one that is no JSON.
  std::string Changed(std::string_view text) {
    try {
      Json tree = ParseJson(text, "input");
      for (size_t left = 1 + Below(3); left > 0; --left) Change(tree);
      return tree.dump(-1, ' ', Below(4) == 0, Json::error_handler_t::replace);
    } catch (const Error&) {
      return "";
    }
  }

  // A text with one change, or with one of the texts of `json` put in: words alone reach added tokens and merges.
  std::string ChangedText(std::string text, std::string_view json) {
    if (Below(2) == 0) return ChangedText(std::move(text));
    try {
      Json tree = ParseJson(json, "input");
      std::vector<Json*> nodes;
      Collect(tree, nodes);
      std::vector<std::string> texts{" "};
      for (const Json* node : nodes) {
        if (node->is_string()) texts.push_back(node->get<std::string>());
        if (!node->is_object()) continue;
        for (const auto& item : node->items()) texts.push_back(item.key());
      }
      return text.insert(Below(text.size() + 1), texts[Below(texts.size())]);
    } catch (const Error&) {
      return ChangedText(std::move(text));
    }
  }

 private:
  static void Collect(Json& node, std::vector<Json*>& found) {
    found.push_back(&node);
    if (!node.is_structured()) return;
    for (Json& child : node) Collect(child, found);
  }

  Json Scalar() {
    static const std::vector<Json> usual = {nullptr, true, false, "", Json::array(), Json::object(), 0, 1, -1, 2, 3, 4, 5, 32, 255, 256, 0.5, 1e300, 5e-324,
                                            INT32_MAX, INT32_MIN, int64_t{1} << 31, int64_t{1} << 48, INT64_MAX, INT64_MIN, UINT64_MAX};
    return usual[Below(usual.size())];
  }

  void Change(Json& tree) {
    std::vector<Json*> nodes;
    Collect(tree, nodes);
    Json& node = *nodes[Below(nodes.size())];
    const Json other = *nodes[Below(nodes.size())];
    const bool full = node.is_structured() && !node.empty();
    switch (Below(6)) {
      case 0:
        if (!full) break;
        node.erase(std::next(node.begin(), static_cast<std::ptrdiff_t>(Below(node.size()))));
        return;
      case 1:
        if (!full) break;
        if (node.is_array()) node.insert(node.begin() + static_cast<std::ptrdiff_t>(Below(node.size() + 1)), Json(node[Below(node.size())]));
        else node[ChangedText(std::next(node.begin(), static_cast<std::ptrdiff_t>(Below(node.size()))).key())] = other;
        return;
      case 2:
        node = other;
        return;
      case 3:
        if (node.is_array()) node.push_back(other);
        else node = Scalar();
        return;
      default:
        break;
    }
    if (node.is_string()) node = ChangedText(node.get<std::string>());
    else if (node.is_number_integer()) node = static_cast<int64_t>(node.get<uint64_t>() + Below(3) - 1);
    else if (!node.is_structured()) node = Scalar();
  }

  std::string ChangedText(std::string text) {
    static const std::vector<std::string> usual = {"\xC3\xA9", "\xC5\x84", "\xCC\x81", "\xE2\x96\x81", "\xE4\xB8\xAD", "\xEF\xBF\xBD", "\xF0\x9F\x98\x80"};
    const size_t way = Below(8);
    if (way < 2) return text.insert(Below(text.size() + 1), usual[Below(usual.size())]);
    if (way == 2) return text.substr(0, Below(text.size() + 1));
    const size_t size = text.size(), room = size + 8;
    text.resize(room);
    text.resize(LLVMFuzzerMutate(reinterpret_cast<uint8_t*>(text.data()), size, room));
    return text;
  }

  std::minstd_rand random_;
};

}  // namespace sol_rt
