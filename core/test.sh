#!/bin/sh
# Builds the core, plays the golden traces through its C interface, tests sessions, and builds programs against what it installs.
set -eu
# shellcheck source=bindings/test-lib.sh
. "$(dirname "$0")/../bindings/test-lib.sh"
install cmake cmake g++ make || skip "cmake can't be had"
build=${SOL_RT_CORE_BUILD:-$root/build/core} # that of the Python tests, too
SOL_RT_CORE_LIBRARY=$("$bindings/build-core.sh" "$build")
test_inputs
alone_in "$build"
cmake -S "$root/core" -B "$build" -DSOL_RT_TESTS=ON >/dev/null
cmake --build "$build" --parallel "$(getconf _NPROCESSORS_ONLN)" --target golden session_calls step_calls batch_calls host_engine_calls runtimes sol_rt sol_rt_static >/dev/null
exec 9>&-

"$build/golden" "$SOL_TEST_ORT" "$SOL_TEST_BUNDLE" "$SOL_TEST_CASES"
"$build/golden" "$SOL_TEST_ORT" "$SOL_TEST_BUNDLE" "$SOL_TEST_CASES" --bodies
for calls in session_calls step_calls batch_calls host_engine_calls; do
  "$build/$calls" "$SOL_TEST_ORT" "$SOL_TEST_BUNDLE" "$SOL_TEST_SCRATCH"
done
"$build/runtimes" "$SOL_TEST_RUNTIMES" "$SOL_TEST_NEWER" "$SOL_TEST_BUNDLE"

strip -o "$SOL_TEST_SCRATCH/stripped" "$SOL_TEST_LIBRARY"
size=$(wc -c <"$SOL_TEST_SCRATCH/stripped")
echo "$size bytes stripped"
[ "$size" -lt 3300000 ] || { echo "error: expected less than 3300000" >&2; exit 1; }
others=$(nm -D --defined-only "$SOL_TEST_LIBRARY" | awk '$3 !~ /^sol_/ { print $3 }')
[ -z "$others" ] || { echo "error: it exports $others" >&2; exit 1; }

# Programs of a host: by CMake's package, shared and static, and by pkg-config.
prefix=$SOL_TEST_SCRATCH/prefix
host=$SOL_TEST_SCRATCH/host
cmake --install "$build" --prefix "$prefix" >/dev/null
mkdir "$host"
cat >"$host/CMakeLists.txt" <<'END'
cmake_minimum_required(VERSION 3.21)
project(host C CXX)
find_package(sol_rt REQUIRED)
add_executable(shared generate.c)
target_link_libraries(shared PRIVATE sol_rt::sol_rt)
add_executable(static generate.c)
target_link_libraries(static PRIVATE sol_rt::static)
set_target_properties(static PROPERTIES LINKER_LANGUAGE CXX)
END
cp "$root/core/examples/generate.c" "$host"
cmake -S "$host" -B "$host/build" -DCMAKE_PREFIX_PATH="$prefix" >/dev/null
cmake --build "$host/build" >/dev/null
programs="$host/build/shared $host/build/static"
if command -v pkg-config >/dev/null; then
  PKG_CONFIG_PATH=$(dirname "$(find "$prefix" -name sol_rt.pc)")
  export PKG_CONFIG_PATH
  # shellcheck disable=SC2046
  cc "$host/generate.c" -o "$host/plain" $(pkg-config --cflags --libs sol_rt)
  programs="$programs $host/plain"
fi
LD_LIBRARY_PATH=$(dirname "$(find "$prefix" -name libsol_rt.so)")
export LD_LIBRARY_PATH
for program in $programs; do
  "$program" "$SOL_TEST_ORT" "$SOL_TEST_BUNDLE" "Once upon a time" 0.5 >"$host/text"
  [ -s "$host/text" ] || { echo "error: $program wrote nothing" >&2; exit 1; }
done
for budget in abc 0.5x 1.5 ""; do
  for program in $programs; do
    code=0
    "$program" "$SOL_TEST_ORT" "$SOL_TEST_BUNDLE" "Once upon a time" "$budget" 2>"$host/error" || code=$?
    [ "$code" = 2 ] && [ "$(wc -l <"$host/error")" = 1 ] || { echo "error: $program took the budget '$budget', code $code" >&2; exit 1; }
  done
done
echo "hosts built and run: $(echo "$programs" | wc -w)"
