#include "base/text/json.h"

#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/text/printable.h"

namespace sol_rt {
namespace {

// A handler of nlohmann's events (json_sax_t) that makes the tree, and stops where the text goes beyond the bounds.
class Bounded {
 public:
  Bounded(Json& made, size_t most_keys) : made_(made), most_keys_(most_keys) {}
  std::string fault;

  bool null() { return Add(nullptr); }
  bool boolean(bool value) { return Add(value); }
  bool number_integer(Json::number_integer_t value) { return Add(value); }
  bool number_unsigned(Json::number_unsigned_t value) { return Add(value); }
  bool number_float(Json::number_float_t value, const std::string&) { return Add(value); }
  bool string(std::string& value) { return Add(std::move(value)); }
  bool binary(Json::binary_t&) { return false; }  // in no text
  bool start_object(size_t) { return Enter(Json::object()); }
  bool end_object() { return Leave(); }
  bool start_array(size_t) { return Enter(Json::array()); }
  bool end_array() { return Leave(); }
  bool key(std::string& name) {
    if (++open_.back().keys > most_keys_) {
      fault = "an object of more than " + std::to_string(most_keys_) + " keys";
      return false;
    }
    named_ = &(*open_.back().value)[name];
    return true;
  }
  bool parse_error(size_t, const std::string&, const Json::exception& error) {
    fault = error.what();
    return false;
  }

 private:
  // A list or object that has not ended. Its place stays: what it is in takes no more values until it ends.
  struct Open {
    Json* value;
    size_t keys;
  };

  Json& Place(Json&& value) {
    if (open_.empty()) return made_ = std::move(value);
    Json& parent = *open_.back().value;
    if (parent.is_object()) return *named_ = std::move(value);
    parent.push_back(std::move(value));
    return parent.back();
  }
  bool Add(Json&& value) {
    Place(std::move(value));
    return true;
  }
  bool Enter(Json&& value) {
    if (open_.size() == kJsonDepth) {
      fault = "more than " + std::to_string(kJsonDepth) + " lists and objects inside each other";
      return false;
    }
    open_.push_back({&Place(std::move(value)), 0});
    return true;
  }
  bool Leave() {
    open_.pop_back();
    return true;
  }

  Json& made_;
  Json* named_ = nullptr;  // the value of the key that was read last
  size_t most_keys_;
  std::vector<Open> open_;
};

// nlohmann takes a NUL for the text's end and passes over a byte order mark.
bool HasNulOrMark(std::string_view text) { return text.find('\0') != std::string_view::npos || text.substr(0, 3) == "\xEF\xBB\xBF"; }

constexpr size_t kLongest = 400;  // bytes; errors show less

void Dump(const Json& value, std::string& text) {
  if (text.size() > kLongest) return;
  const bool object = value.is_object();
  if (!object && !value.is_array()) {
    text += value.is_string() ? Json(Cut(value.get_ref<const std::string&>(), kLongest)).dump(-1, ' ', true) : value.dump();
    return;
  }
  text += object ? '{' : '[';
  bool first = true;
  for (auto item = value.begin(); item != value.end() && text.size() <= kLongest; ++item) {
    if (!first) text += ", ";
    first = false;
    if (object) text += Json(Cut(item.key(), kLongest)).dump(-1, ' ', true) + ": ";
    Dump(*item, text);
  }
  text += object ? '}' : ']';
}

}  // namespace

Json ParseJson(std::string_view text, const std::string& path, size_t most_keys) {
  Json made;
  Bounded builder(made, most_keys);
  if (HasNulOrMark(text)) {
    builder.fault = "a NUL or a byte order mark";
  } else {
    Json::sax_parse(text.begin(), text.end(), &builder);
  }
  if (!builder.fault.empty()) {
    BundleFault(path, "", "text that is not JSON (" + Short(builder.fault) + ")", "UTF-8 JSON");
  }
  return made;
}

nlohmann::json ParseShallow(std::string_view text, bool throws) {
  bool deep = false;
  const auto bounded = [&deep](int depth, nlohmann::json::parse_event_t, nlohmann::json&) {
    deep = deep || depth > static_cast<int>(kJsonDepth);
    return !deep;
  };
  nlohmann::json value = nlohmann::json::parse(HasNulOrMark(text) ? "" : text, bounded, throws);
  if (deep) return nlohmann::json(nlohmann::json::value_t::discarded);
  return value;
}

std::string DumpJson(const Json& value) {
  std::string text;
  Dump(value, text);
  return text;
}

}  // namespace sol_rt
