#include "base/text/json.h"

#include <nlohmann/json.hpp>
#include <vector>

#include "base/error.h"
#include "base/text/printable.h"

namespace sol_rt {
namespace {

using Builder = nlohmann::detail::json_sax_dom_parser<Json>;

// Makes the tree, and stops where the text goes beyond the bounds.
class Bounded : public Builder {
 public:
  Bounded(Json& made, size_t most_keys) : Builder(made), most_keys_(most_keys) {}
  std::string fault;

  bool start_object(size_t size) { return Enter() && Builder::start_object(size); }
  bool end_object() { return Leave() && Builder::end_object(); }
  bool start_array(size_t size) { return Enter() && Builder::start_array(size); }
  bool end_array() { return Leave() && Builder::end_array(); }
  bool key(std::string& name) {
    if (++keys_.back() <= most_keys_) return Builder::key(name);
    fault = "an object of more than " + std::to_string(most_keys_) + " keys";
    return false;
  }
  bool parse_error(size_t, const std::string&, const nlohmann::detail::exception& error) {
    fault = error.what();
    return false;
  }

 private:
  bool Enter() {
    keys_.push_back(0);
    if (keys_.size() <= kJsonDepth) return true;
    fault = "more than " + std::to_string(kJsonDepth) + " lists and objects inside each other";
    return false;
  }
  bool Leave() {
    keys_.pop_back();
    return true;
  }
  size_t most_keys_;
  std::vector<size_t> keys_;
};

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
  if (!Json::sax_parse(text.begin(), text.end(), &builder)) BundleFault(path, "", "text that is not JSON (" + Short(builder.fault) + ")", "UTF-8 JSON");
  return made;
}

nlohmann::json ParseShallow(std::string_view text, bool throws) {
  bool deep = false;
  const auto bounded = [&deep](int depth, nlohmann::json::parse_event_t, nlohmann::json&) {
    deep = deep || depth > static_cast<int>(kJsonDepth);
    return !deep;
  };
  nlohmann::json value = nlohmann::json::parse(text, bounded, throws);
  if (deep) return nlohmann::json(nlohmann::json::value_t::discarded);
  return value;
}

std::string DumpJson(const Json& value) {
  std::string text;
  Dump(value, text);
  return text;
}

}  // namespace sol_rt
