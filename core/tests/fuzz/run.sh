#!/bin/sh
# Builds the fuzz targets of the core and runs each:   core/tests/fuzz/run.sh SECONDS
# or until inputs have run, over any number of starts: core/tests/fuzz/run.sh --runs 10000000 FOLDER
# FOLDER then keeps corpora, logs, findings, and in TARGET.count how many inputs have run; without it all lies in build/.
# Needs clang with libFuzzer ($CLANGXX names it). $SOL_FUZZ_BUILD names another build folder.
set -eu
runs=0
seconds=${1:-600}
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
build=${SOL_FUZZ_BUILD:-$root/build/core-fuzz}
corpora=$build
findings=$root/build/fuzz/core
if [ "$seconds" = --runs ]; then
  runs=$2
  corpora=$3
  findings=$corpora/findings
fi
mkdir -p "$findings"
clang=${CLANGXX:-}
for name in clang++ clang++-19 clang++-18 clang++-17 clang++-16 clang++-15 clang++-14; do
  [ -n "$clang" ] || clang=$(command -v "$name" || true)
done
if [ -z "$clang" ]; then
  echo "skipped: the core's fuzz targets need clang"
  exit 0
fi
cmake -S "$root/core" -B "$build" -DCMAKE_CXX_COMPILER="$clang" -DSOL_RT_FUZZ=ON -DSOL_RT_OPERATORS=OFF -DSOL_SANITIZE=address,undefined >/dev/null

# What costs time and finds nothing more here: origins of allocations, a long memory of freed ones, filling of new ones, libFuzzer's weighing of rare
# features, and its look at the folder each second, much of what it does where other programs have the processor.
export ASAN_OPTIONS="malloc_context_size=1:quarantine_size_mb=4:thread_local_quarantine_size_kb=64:max_malloc_fill_size=0${ASAN_OPTIONS:+:$ASAN_OPTIONS}"

# fuzz NAME OPTION...
fuzz() {
  target=$1
  shift
  [ ! -e "$here/corpus/$target.dict" ] || set -- "-dict=$here/corpus/$target.dict" "$@"
  "$build/fuzz_$target" -max_len=4096 -timeout=20 -entropic=0 -reload=0 -verbosity=0 -print_final_stats=1 -artifact_prefix="$findings/$target-" "$@" "$corpora/corpus-$target"
}

status=0
for source in "$here"/*.cc; do
  name=$(basename "$source" .cc)
  cmake --build "$build" --target "fuzz_$name" --parallel >/dev/null
  python3 "$here/seeds.py" "$name" "$corpora/corpus-$name"
  if [ "$runs" = 0 ]; then
    echo "$name: $seconds seconds"
    fuzz "$name" -max_total_time="$seconds" || status=1
    continue
  fi
  # In parts, so that little is lost when the machine stops: only a part that has ended is counted.
  count=$(cat "$corpora/$name.count" 2>/dev/null || echo 0)
  while [ "$count" -lt "$runs" ]; do
    fuzz "$name" -runs=100000 >"$corpora/$name.log" 2>&1 || { echo "$name: see $corpora/$name.log" >&2; exit 1; }
    ran=$(sed -n 's/^stat::number_of_executed_units: *//p' "$corpora/$name.log")
    count=$((count + ran))
    echo "$count" >"$corpora/$name.count"
  done
  echo "$name: $count inputs"
done
exit $status
