#include "base/text/number_text.h"

#include <cmath>
#include <locale>
#include <nlohmann/json.hpp>
#include <sstream>

namespace sol_rt {

std::string NumberText(double number) {
  if (std::isnan(number)) return "nan";
  if (std::isinf(number)) return number > 0 ? "inf" : "-inf";
  return nlohmann::json(number).dump();
}

std::string ShortNumberText(double number) {
  std::ostringstream text;
  text.imbue(std::locale::classic());
  text << number;
  return text.str();
}

}  // namespace sol_rt
