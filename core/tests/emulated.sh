#!/bin/sh
# Builds the core for another system and plays the golden traces and the session tests there:
#   core/tests/emulated.sh linux-arm64 BUILD_DIR libonnxruntime.so.1     under qemu-user, with the library of the arm64 wheel
#   core/tests/emulated.sh windows-x64 BUILD_DIR onnxruntime.dll         under wine (Debian's wine64), with the library of the Windows wheel
# Other arguments go to CMake, as in cross.sh. `pip download --no-deps --platform win_amd64 onnxruntime` gets a wheel of another system.
set -eu
if [ $# -lt 3 ]; then
  sed -n '2,5p' "$0" | cut -c3- >&2
  exit 2
fi
core=$(cd "$(dirname "$0")/.." && pwd)
target=$1
build=$2
ort=$(realpath "$3")
shift 3
case $target in
  linux-arm64)
    run="qemu-aarch64 -L /usr/aarch64-linux-gnu"
    suffix=
    drive= ;;
  windows-x64)
    run=wine
    suffix=.exe
    drive=Z: ;; # wine's name of the whole file system
  *)
    echo "$0: got $target, expected linux-arm64 or windows-x64" >&2
    exit 2 ;;
esac
command -v "${run%% *}" >/dev/null || { echo "error: ${run%% *} is not here" >&2; exit 1; }
"$core/cross.sh" "$target" "$build" -DSOL_RT_TESTS=ON "$@" >&2
golden=$(realpath "$core/../runtime_tests/golden")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
bodies=$ort
if [ "$target" = linux-arm64 ]; then
  bodies=$scratch/without_kleidiai.so # its kernels round otherwise than those of other processors, and near ties flip
  aarch64-linux-gnu-gcc -shared -fPIC -O1 "-DREAL_ORT=\"$ort\"" -isystem "$build/headers" -o "$bodies" "$core/tests/without_kleidiai.c" -ldl
fi
$run "$build/golden$suffix" "$drive$ort" "$drive$golden/tiny" "$drive$golden/cases.tsv"
$run "$build/golden$suffix" "$drive$bodies" "$drive$golden/tiny" "$drive$golden/cases.tsv" --bodies
for calls in session_calls step_calls batch_calls host_engine_calls; do
  $run "$build/$calls$suffix" "$drive$ort" "$drive$golden/tiny" "$drive$scratch"
done
