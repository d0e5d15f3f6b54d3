#!/bin/sh
# Builds build/apple/SolRt.xcframework, with static libraries for iOS, its simulator and macOS:   bindings/apple/build-xcframework.sh
# Runs on macOS with Xcode and CMake. bindings/swift takes the result as its module CSolRt.
set -eu
if [ "$(uname -s)" != Darwin ]; then
  echo "error: xcframeworks are made on macOS: xcodebuild is not here" >&2
  exit 1
fi
root=$(cd "$(dirname "$0")/../.." && pwd)
out=$root/build/apple
include=$out/include
rm -rf "$out/SolRt.xcframework" "$include"
mkdir -p "$include"
cp "$root/core/include/sol_rt.h" "$include/"
printf 'module CSolRt {\n  header "sol_rt.h"\n  export *\n}\n' >"$include/module.modulemap"

# ONNX Runtime's and Highway's, which Xcode's SDKs lack.
headers=$root/build/headers
[ -e "$headers/onnxruntime_c_api.h" ] || python3 "$root/scripts/fetch_headers.py" "$headers"

# build NAME SYSTEM SDK OLDEST ARCHITECTURES
build() {
  cmake -S "$root/core" -B "$out/$1" -DCMAKE_BUILD_TYPE=Release -DCMAKE_SYSTEM_NAME="$2" -DCMAKE_OSX_SYSROOT="$3" \
    -DCMAKE_OSX_DEPLOYMENT_TARGET="$4" -DCMAKE_OSX_ARCHITECTURES="$5" -DSOL_RT_FETCH=ON \
    -DONNXRUNTIME_INCLUDE_DIR="$headers" -DHIGHWAY_INCLUDE_DIR="$headers"
  cmake --build "$out/$1" --parallel "$(getconf _NPROCESSORS_ONLN)" --target sol_rt_static
}
build ios iOS iphoneos 15.0 arm64
build simulator iOS iphonesimulator 15.0 "arm64;x86_64"
build macos Darwin macosx 12.0 "arm64;x86_64"

xcodebuild -create-xcframework \
  -library "$out/ios/libsol_rt.a" -headers "$include" \
  -library "$out/simulator/libsol_rt.a" -headers "$include" \
  -library "$out/macos/libsol_rt.a" -headers "$include" \
  -output "$out/SolRt.xcframework"
