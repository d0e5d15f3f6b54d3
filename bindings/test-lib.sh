# Shell functions that the tests of the core and of the bindings share; source it:   . "$(dirname "$0")/../test-lib.sh"
# shellcheck shell=sh
export ORT_DISABLE_TELEMETRY="${ORT_DISABLE_TELEMETRY-1}"
export SOL_RT_COSTS=bytes # golden traces are by bytes, and a first load would measure for seconds
root=$(cd "$(dirname "$0")" && while [ ! -e bindings/test-lib.sh ] && [ "$PWD" != / ]; do cd ..; done && pwd)
bindings=$root/bindings

# skip REASON: ends the test as passed, because a tool can't be had here.
skip() {
  echo "skipped: $*"
  exit 0
}

# install COMMAND PACKAGE...: Debian's packages, if COMMAND is not there and this is root on Debian. Returns whether COMMAND is there.
install() {
  wanted=$1
  shift
  command -v "$wanted" >/dev/null && return
  if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    set -- env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 install -y -qq --no-install-recommends "$@"
    mkdir -p "$root/build"
    (
      # alone: apt-get update does not wait for another one
      if command -v flock >/dev/null; then flock 8; fi
      "$@" || { apt-get update -qq && "$@"; }
    ) 8>"$root/build/apt.lock" >/dev/null 2>&1
  fi
  command -v "$wanted" >/dev/null
}

# alone_in FOLDER: waits for whoever builds there, and is alone until `exec 9>&-` or the end. The Python tests take the same lock.
alone_in() {
  if command -v flock >/dev/null; then
    exec 9>"$1/tests.lock"
    flock 9
  fi
}

# A Python that has ONNX Runtime: the repository's environment, the system's, or one that is made in build/bindings/python.
ort_python() {
  made=$root/build/bindings/python
  for python in "$root/.venv/bin/python" python3 "$made/bin/python"; do
    if command -v "$python" >/dev/null && "$python" -c 'import onnxruntime' 2>/dev/null; then
      echo "$python"
      return
    fi
  done
  python3 -m venv "$made" >&2 && "$made/bin/python" -m pip install -q onnxruntime >&2 && echo "$made/bin/python"
}

# Builds the core and exports what every binding's tests read:
#   SOL_TEST_LIBRARY  libsol_rt; SOL_RT_CORE_LIBRARY names one that is built
#   SOL_TEST_ORT      ONNX Runtime's library; SOL_RT_ORT_LIBRARY names another one
#   SOL_TEST_BUNDLE, SOL_TEST_CASES   the golden bundle and its traces, described at the top of cases.tsv
#   SOL_TEST_SCRATCH  an empty folder
#   SOL_TEST_DAMAGED  bundles that must not load, a folder each
#   SOL_TEST_FULL     a folder on a disk that is full, for programs that run under `on_full_disk`
#   SOL_TEST_RUNTIMES  ONNX Runtimes that cannot be used, one a line: its path, how the error begins, how it ends, with tabs between them
#   SOL_TEST_NEWER    ONNX Runtime, as if it were of version 1.99.0
test_inputs() {
  SOL_TEST_LIBRARY=${SOL_RT_CORE_LIBRARY:-}
  if [ -z "$SOL_TEST_LIBRARY" ]; then
    install cmake cmake g++ make || skip "cmake can't be had"
    SOL_TEST_LIBRARY=$("$bindings/build-core.sh" "$root/build/core") || { echo "error: the core does not build" >&2; exit 1; }
  fi
  SOL_TEST_ORT=${SOL_RT_ORT_LIBRARY:-}
  if [ -z "$SOL_TEST_ORT" ]; then
    python=$(ort_python) || skip "Python's package onnxruntime can't be had"
    SOL_TEST_ORT=$("$python" -c 'import glob, onnxruntime, os; print(sorted(glob.glob(os.path.dirname(onnxruntime.__file__) + "/capi/libonnxruntime.*[0-9]*"))[0])')
  fi
  SOL_TEST_BUNDLE=$root/runtime_tests/golden/tiny
  SOL_TEST_CASES=$root/runtime_tests/golden/cases.tsv
  SOL_TEST_SCRATCH=$(mktemp -d)
  trap 'rm -rf "$SOL_TEST_SCRATCH"' EXIT
  SOL_TEST_DAMAGED=$SOL_TEST_SCRATCH/damaged
  SOL_TEST_FULL=$SOL_TEST_SCRATCH/full
  mkdir -p "$SOL_TEST_DAMAGED" "$SOL_TEST_FULL"
  for name in truncated-weights no-config foreign-config broken-json missing-graph; do
    cp -r "$SOL_TEST_BUNDLE" "$SOL_TEST_DAMAGED/$name"
  done
  head -c 1000 "$SOL_TEST_BUNDLE/weights.bin" >"$SOL_TEST_DAMAGED/truncated-weights/weights.bin"
  rm "$SOL_TEST_DAMAGED/no-config/sol_config.json"
  echo '{"format_version": 99}' >"$SOL_TEST_DAMAGED/foreign-config/sol_config.json"
  head -c 300 "$SOL_TEST_BUNDLE/sol_config.json" >"$SOL_TEST_DAMAGED/broken-json/sol_config.json"
  rm "$SOL_TEST_DAMAGED"/missing-graph/model.*.onnx
  for config in "$root"/runtime_tests/corpus/config/*.json; do
    cp -r "$SOL_TEST_BUNDLE" "$SOL_TEST_DAMAGED/$(basename "$config" .json)"
    cp "$config" "$SOL_TEST_DAMAGED/$(basename "$config" .json)/sol_config.json"
  done
  cc -shared -fPIC -O1 -o "$SOL_TEST_SCRATCH/full_disk.so" "$root/runtime_tests/helpers/full_disk.c" -ldl
  SOL_TEST_RUNTIMES=$SOL_TEST_SCRATCH/runtimes.tsv
  SOL_TEST_NEWER=$SOL_TEST_SCRATCH/newer.so
  usable="expected a library with ONNX Runtime 1.23 or newer; install it, or give its path"
  for path in "$SOL_TEST_SCRATCH/none/libonnxruntime.so" "$SOL_TEST_CASES" "$SOL_TEST_BUNDLE"; do
    printf "%s\tONNX Runtime: got '%s', which cannot be used (\t), %s\n" "$path" "$path" "$usable"
  done >"$SOL_TEST_RUNTIMES"
  printf "%s\tONNX Runtime: got '%s', which\t cannot be used (no function OrtGetApiBase), %s\n" \
    "$SOL_TEST_LIBRARY" "$SOL_TEST_LIBRARY" "$usable" >>"$SOL_TEST_RUNTIMES"
  for version in 1.16.3 1.22.1 1.40.0; do
    path=$SOL_TEST_SCRATCH/$version.so
    fake_runtime "$path" "-DFAKE_VERSION=\"$version\""
    case $version in
      1.40.0) says=", without version 21 of its C API, expected 1.23 or newer; use another release" ;;
      *) says=", expected 1.23 or newer; upgrade it" ;;
    esac
    printf "%s\tONNX Runtime: got version '%s' in '%s'\t%s\n" "$path" "$version" "$path" "$says" >>"$SOL_TEST_RUNTIMES"
  done
  fake_runtime "$SOL_TEST_NEWER" -DFAKE_VERSION='"1.99.0"' "-DFAKE_REAL=\"$SOL_TEST_ORT\"" -ldl
  export SOL_TEST_LIBRARY SOL_TEST_ORT SOL_TEST_BUNDLE SOL_TEST_CASES SOL_TEST_SCRATCH SOL_TEST_DAMAGED SOL_TEST_FULL
  export SOL_TEST_RUNTIMES SOL_TEST_NEWER
}

# fake_runtime FILE OPTION...
fake_runtime() {
  made=$1
  shift
  cc -shared -fPIC -O1 -o "$made" "$root/runtime_tests/helpers/fake_runtime.c" "$@"
}

# on_full_disk COMMAND...: runs it where SOL_TEST_FULL takes two more changes: a file is made there and a little is written.
on_full_disk() {
  LD_PRELOAD="$SOL_TEST_SCRATCH/full_disk.so${LD_PRELOAD:+:$LD_PRELOAD}" FULL_DISK_FOLDER="$SOL_TEST_FULL" FULL_DISK_AFTER=2 "$@"
}
