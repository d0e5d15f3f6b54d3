#!/bin/sh
# Builds the core, plays the golden traces over its C interface from a program in C, and runs the tests of sessions and the example.
# The sanitizers run in runtime_tests/test_native_session.py.
set -eu
# shellcheck source=bindings/test-lib.sh
. "$(dirname "$0")/../test-lib.sh"
test_inputs
folder=$(dirname "$SOL_TEST_LIBRARY")
programs=$SOL_TEST_SCRATCH/programs
mkdir -p "$programs" "$SOL_TEST_SCRATCH/sessions"
cd "$bindings/c"
for source in tests/session/golden.c examples/generate.c; do
  cc -std=c11 -O1 -Wall -Wextra -Werror -Iinclude "$source" -L"$folder" -lsol_rt -lm -Wl,-rpath,"$folder" -o "$programs/$(basename "$source" .c)"
done
c++ -std=c++17 -O1 -Wall -Wextra -Werror -Iinclude tests/session/session_calls.cc -L"$folder" -lsol_rt -pthread -Wl,-rpath,"$folder" -o "$programs/session_calls"
for mode in "" --bodies; do
  # shellcheck disable=SC2086
  "$programs/golden" "$SOL_TEST_ORT" "$SOL_TEST_BUNDLE" "$SOL_TEST_CASES" $mode
  # shellcheck disable=SC2086
  "$programs/session_calls" "$SOL_TEST_ORT" "$SOL_TEST_BUNDLE" "$SOL_TEST_SCRATCH/sessions" $mode
done
"$programs/generate" "$SOL_TEST_ORT" "$SOL_TEST_BUNDLE" "Where is Ben?" 0.6
