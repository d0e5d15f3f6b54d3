#include "base/text/json.h"

#include <nlohmann/json.hpp>
#include <vector>

#include "base/error.h"
#include "base/text/printable.h"

namespace sol_rt {
namespace {

// Counts depth and keys before the text becomes a tree.
class Bounds : public nlohmann::json_sax<Json> {
 public:
  explicit Bounds(size_t most_keys) : most_keys_(most_keys) {}
  std::string fault;

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_object(std::size_t) override { return Enter(); }
  bool end_object() override { return Leave(); }
  bool start_array(std::size_t) override { return Enter(); }
  bool end_array() override { return Leave(); }
  bool key(string_t&) override {
    if (++keys_.back() <= most_keys_) return true;
    fault = "an object of more than " + std::to_string(most_keys_) + " keys";
    return false;
  }
  bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception& error) override {
    fault = error.what();
    return false;
  }

 private:
  bool Enter() {
    if (keys_.size() >= kJsonDepth) {
      fault = "more than " + std::to_string(kJsonDepth) + " lists and objects inside each other";
      return false;
    }
    keys_.push_back(0);
    return true;
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
  Bounds bounds(most_keys);
  if (!Json::sax_parse(text.begin(), text.end(), &bounds) || !bounds.fault.empty()) {
    BundleFault(path, "", "text that is not JSON (" + Short(bounds.fault) + ")", "UTF-8 JSON");
  }
  return Json::parse(text.begin(), text.end());
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
