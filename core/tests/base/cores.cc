// Number of threads that the core takes, for runtime_tests/engine/test_cores.py: `cores ROOT COUNT`, with the cores 0 … COUNT - 1 allowed; without arguments on this
// machine.
#include "base/cores.h"

#include <cstdio>
#include <cstdlib>

int main(int count, char** arguments) {
  std::set<int> allowed;
  if (count < 3) {
    allowed = sol_rt::AllowedCores();
  } else {
    for (int number = 0; number < std::atoi(arguments[2]); ++number) allowed.insert(number);
  }
  std::printf("%d\n", sol_rt::UsableCores(count < 3 ? "" : arguments[1], allowed));
}
