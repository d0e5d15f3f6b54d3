#!/bin/sh
# Builds the core for another system:   core/cross.sh TARGET BUILD_DIR
# TARGET: linux-arm64 (Debian's g++-aarch64-linux-gnu), windows-x64 (mingw-w64), android-arm64, android-x64 ($ANDROID_NDK), macos-arm64 or macos-x64
# (on a Mac, elsewhere by Zig: $ZIG names the program, else it is Python's package ziglang), wasm (Emscripten; without the engine on ONNX Runtime).
# Other arguments go to CMake; without network give -DFETCHCONTENT_SOURCE_DIR_PCRE2=FOLDER and the like for UTF8PROC and JSON.
set -eu
if [ $# -lt 2 ]; then
  sed -n '2,5p' "$0" | cut -c3- >&2
  exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
target=$1
build=$2
shift 2
# Only the target-neutral headers: a cross compiler must not see the host's others.
headers=$build/headers
if [ "$target" != wasm ] && [ ! -e "$headers/onnxruntime_c_api.h" ]; then
  mkdir -p "$build"
  python3 "$here/../scripts/fetch_headers.py" "$headers" --from /usr/include >&2 || python3 "$here/../scripts/fetch_headers.py" "$headers" >&2
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
  macos-arm64 | macos-x64)
    processor=arm64
    zig_processor=aarch64
    [ "$target" = macos-arm64 ] || processor=x86_64 zig_processor=x86_64
    if [ "$(uname -s)" = Darwin ]; then
      set -- -DCMAKE_OSX_ARCHITECTURES=$processor -DCMAKE_OSX_DEPLOYMENT_TARGET=13.0 "$@"
    else
      # CMake wants one program for each tool. Nothing is installed, so no install_name_tool is needed.
      for tool in cc c++ ar ranlib; do
        arguments=$tool
        case $tool in c*) arguments="$tool -target $zig_processor-macos.13.0" ;; esac
        printf '#!/bin/sh\nexec %s %s "$@"\n' "${ZIG:-python3 -m ziglang}" "$arguments" >"$build/zig-$tool"
        chmod +x "$build/zig-$tool"
      done
      tools=$(cd "$build" && pwd)
      set -- -DCMAKE_SYSTEM_NAME=Darwin -DCMAKE_SYSTEM_PROCESSOR=$processor -DCMAKE_C_COMPILER="$tools/zig-cc" -DCMAKE_CXX_COMPILER="$tools/zig-c++" \
        -DCMAKE_AR="$tools/zig-ar" -DCMAKE_RANLIB="$tools/zig-ranlib" -DCMAKE_INSTALL_NAME_TOOL=/bin/true "$@"
    fi ;;
  wasm)
    set -- -DCMAKE_TOOLCHAIN_FILE="$(dirname "$(readlink -f "$(command -v emcc)")")/cmake/Modules/Platform/Emscripten.cmake" -DSOL_RT_CPU_ENGINE=OFF "$@" ;;
  *)
    echo "$0: got $target, expected linux-arm64, windows-x64, android-arm64, android-x64, macos-arm64, macos-x64 or wasm" >&2
    exit 2 ;;
esac
cmake -S "$here" -B "$build" -DSOL_RT_FETCH=ON -DONNXRUNTIME_INCLUDE_DIR="$headers" -DHIGHWAY_INCLUDE_DIR="$headers" "$@"
cmake --build "$build" --parallel "$(getconf _NPROCESSORS_ONLN)"
