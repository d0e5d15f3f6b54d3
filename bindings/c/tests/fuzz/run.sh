#!/bin/sh
# Builds the fuzz targets of the core and runs each:   bindings/c/tests/fuzz/run.sh SECONDS
# Needs clang with libFuzzer ($CLANGXX names it). What breaks a reader is left in build/fuzz/core.
set -eu
seconds=${1:-600}
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../../.." && pwd)
clang=${CLANGXX:-}
for name in clang++ clang++-19 clang++-18 clang++-17 clang++-16 clang++-15 clang++-14; do
  [ -n "$clang" ] || clang=$(command -v "$name" || true)
done
if [ -z "$clang" ]; then
  echo "skipped: the core's fuzz targets need clang"
  exit 0
fi
build=$root/build/core-fuzz
cmake -S "$root/bindings/c" -B "$build" -DCMAKE_CXX_COMPILER="$clang" -DSOL_RT_FUZZ=ON -DSOL_RT_OPERATORS=OFF -DSOL_SANITIZE=address,undefined >/dev/null
findings=$root/build/fuzz/core
mkdir -p "$findings"
status=0
for source in "$here"/*.cc; do
  name=$(basename "$source" .cc)
  cmake --build "$build" --target "fuzz_$name" --parallel >/dev/null
  corpus=$build/corpus-$name
  python3 "$here/seeds.py" "$name" "$corpus"
  echo "$name: $seconds seconds"
  set -- "$corpus"
  [ ! -e "$here/corpus/$name.dict" ] || set -- "-dict=$here/corpus/$name.dict" "$@"
  "$build/fuzz_$name" -max_total_time="$seconds" -max_len=65536 -timeout=20 -verbosity=0 -print_final_stats=1 -artifact_prefix="$findings/$name-" "$@" ||
    status=1
done
exit $status
