// Numbers in messages and files, whatever the host's locale is.
#pragma once

#include <string>

namespace sol_rt {

std::string NumberText(double number);       // the shortest text that reads back to the same number: `0.1`, `1e-05`, `inf`
std::string ShortNumberText(double number);  // six significant digits, as `%g`: `0.333333`

}  // namespace sol_rt
