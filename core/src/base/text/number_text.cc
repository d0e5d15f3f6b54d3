// Takes the digits from printf and sets point and exponent itself, because printf's decimal point depends on the locale.
#include "base/text/number_text.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>

namespace sol_rt {
namespace {

// Text of `digits` significant digits. `highest` is the first power of ten that takes an exponent.
std::string Written(double number, int digits, int highest, bool point) {
  char text[40];
  std::snprintf(text, sizeof text, "%.*e", digits - 1, std::abs(number));
  std::string figures;
  const char* at = text;
  for (; *at != 'e'; ++at) {
    if ('0' <= *at && *at <= '9') figures += *at;
  }
  const int power = std::atoi(at + 1);
  while (figures.size() > 1 && figures.back() == '0') figures.pop_back();
  const std::string sign = std::signbit(number) ? "-" : "";
  if (power < -4 || power >= highest) {
    const std::string fraction = figures.size() > 1 ? "." + figures.substr(1) : "";
    std::snprintf(text, sizeof text, "e%c%02d", power < 0 ? '-' : '+', std::abs(power));
    return sign + figures[0] + fraction + text;
  }
  if (power < 0) return sign + "0." + std::string(static_cast<size_t>(-power - 1), '0') + figures;
  const size_t whole = static_cast<size_t>(power) + 1;
  if (figures.size() <= whole) return sign + figures + std::string(whole - figures.size(), '0') + (point ? ".0" : "");
  return sign + figures.substr(0, whole) + "." + figures.substr(whole);
}

std::string Unusual(double number) { return std::isnan(number) ? "nan" : number > 0 ? "inf" : "-inf"; }

}  // namespace

std::string NumberText(double number) {
  if (!std::isfinite(number)) return Unusual(number);
  for (int digits = 1; digits < 17; ++digits) {
    char text[40];
    std::snprintf(text, sizeof text, "%.*e", digits - 1, number);
    if (std::strtod(text, nullptr) == number) return Written(number, digits, 16, true);
  }
  return Written(number, 17, 16, true);
}

std::string ShortNumberText(double number) { return std::isfinite(number) ? Written(number, 6, 6, false) : Unusual(number); }

}  // namespace sol_rt
