#!/bin/sh
# Builds the core for another system:   bindings/c/cross.sh TARGET BUILD_DIR
# TARGET: linux-arm64 (Debian's g++-aarch64-linux-gnu), windows-x64 (mingw-w64), android-arm64, android-x64 ($ANDROID_NDK), or macos-arm64 (on a Mac).
# Other arguments go to CMake; without network give -DFETCHCONTENT_SOURCE_DIR_PCRE2=FOLDER and the like for UTF8PROC and JSON.
set -eu
if [ $# -lt 2 ]; then
  sed -n '2,4p' "$0" | cut -c3- >&2
  exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
target=$1
build=$2
shift 2
# Only the target-neutral headers: a cross compiler must not see the host's others.
headers=$build/headers
if [ ! -e "$headers/onnxruntime_c_api.h" ]; then
  mkdir -p "$build"
  python3 "$here/../../scripts/fetch_headers.py" "$headers" --from /usr/include >&2 || python3 "$here/../../scripts/fetch_headers.py" "$headers" >&2
fi
case $target in
  linux-arm64)
    set -- -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
      -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ "$@" ;;
  windows-x64)
    set -- -DCMAKE_SYSTEM_NAME=Windows -DCMAKE_SYSTEM_PROCESSOR=AMD64 \
      -DCMAKE_C_COMPILER=x86_64-w64-mingw32-gcc-posix -DCMAKE_CXX_COMPILER=x86_64-w64-mingw32-g++-posix "$@" ;;
  android-arm64 | android-x64)
    abi=arm64-v8a
    [ "$target" = android-x64 ] && abi=x86_64
    : "${ANDROID_NDK:?names no NDK}"
    set -- -DCMAKE_TOOLCHAIN_FILE="$ANDROID_NDK/build/cmake/android.toolchain.cmake" -DANDROID_ABI=$abi -DANDROID_PLATFORM=android-26 \
      -DANDROID_STL=c++_static "$@" ;;
  macos-arm64)
    set -- -DCMAKE_OSX_ARCHITECTURES=arm64 -DCMAKE_OSX_DEPLOYMENT_TARGET=13.0 "$@" ;;
  *)
    echo "$0: got $target, expected linux-arm64, windows-x64, android-arm64, android-x64 or macos-arm64" >&2
    exit 2 ;;
esac
cmake -S "$here" -B "$build" -DSOL_RT_FETCH=ON -DONNXRUNTIME_INCLUDE_DIR="$headers" -DHIGHWAY_INCLUDE_DIR="$headers" "$@"
cmake --build "$build" --parallel "$(getconf _NPROCESSORS_ONLN)"
