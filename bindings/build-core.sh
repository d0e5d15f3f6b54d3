#!/bin/sh
# Builds the native core and prints the path of its shared library:   bindings/build-core.sh BUILD_DIR
# Progress goes to stderr. A library that is there and newer than the sources is kept.
set -eu
# shellcheck source=bindings/test-lib.sh
. "$(dirname "$0")/test-lib.sh"
if [ $# -ne 1 ]; then
  echo "usage: $0 BUILD_DIR" >&2
  exit 2
fi
mkdir -p "$1"
build=$(cd "$1" && pwd)
alone_in "$build"
if [ ! -e "$build/CMakeCache.txt" ]; then
  install cmake cmake make
  # without apt-get CMake fetches the libraries
  command -v apt-get >/dev/null || export SOL_RT_FETCH=ON
  "$root/scripts/install-packages.sh" build >&2
  cmake -S "$root/core" -B "$build" -DCMAKE_BUILD_TYPE=Release >&2
fi
cmake --build "$build" --parallel "$(getconf _NPROCESSORS_ONLN)" --target sol_rt >&2
for name in libsol_rt.so libsol_rt.dylib; do
  if [ -e "$build/$name" ]; then
    echo "$build/$name"
    exit
  fi
done
echo "$0: the build left no libsol_rt in $build" >&2
exit 1
