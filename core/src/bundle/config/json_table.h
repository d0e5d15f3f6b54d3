// A JSON object that is being checked: every getter throws an error that names its key, and `Done` refuses keys that no getter has read.
#pragma once

#include <cstdint>
#include <functional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/text/json.h"

namespace sol_rt {

constexpr int64_t kLargestCount = int64_t{1} << 48;  // a larger count or number of bytes is damage

class JsonTable {
 public:
  // `where` is the table's own key; `raw` must outlive the table.
  JsonTable(std::string path, std::string where, const Json& raw);

  const Json& raw() const { return raw_; }
  const std::string& path() const { return path_; }
  const std::string& where() const { return where_; }
  bool Has(const std::string& name) const;
  std::string Key(const std::string& name) const;
  [[noreturn]] void Fail(const std::string& name, const std::string& got, const std::string& expected,
                         const std::string& hint = "export the bundle again") const;

  const Json& Value(const std::string& name);
  const Json& Typed(const std::string& name, const std::function<bool(const Json&)>& test, const std::string& expected);
  std::string Text(const std::string& name);
  std::string Choice(const std::string& name, const std::vector<std::string>& allowed);
  int64_t Integer(const std::string& name, int64_t low = 1, int64_t high = kLargestCount);
  std::vector<int64_t> Integers(const std::string& name, int64_t low = 1, int64_t high = kLargestCount);
  std::vector<std::string> Texts(const std::string& name);
  std::string FileName(const std::string& name);
  JsonTable Table(const std::string& name);
  void Done();

 private:
  std::string path_, where_;
  const Json& raw_;
  std::set<std::string> asked_;
};

bool IsIntegerWithin(const Json& value, int64_t low, int64_t high);

// True if `name` is a plain file name: no folder, no leading dot, no character that a shell or browser changes.
bool IsFileName(std::string_view name);

// The candidate that is most like `name`; empty if none is much like it.
std::string Nearest(const std::string& name, const std::set<std::string>& candidates);

}  // namespace sol_rt
