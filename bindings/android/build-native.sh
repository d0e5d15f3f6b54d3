#!/bin/sh
# Builds libsol_rt.so and libsol_rt_jni.so for Android with the NDK:   ANDROID_NDK_HOME=... bindings/android/build-native.sh [ABI...]
# Writes build/android/jniLibs/ABI/*.so. Without names: arm64-v8a and x86_64.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
ndk=${ANDROID_NDK_HOME:-${ANDROID_NDK_ROOT:-}}
if [ ! -e "$ndk/build/cmake/android.toolchain.cmake" ]; then
  echo "error: no NDK: set ANDROID_NDK_HOME to the folder of NDK r26 or newer" >&2
  exit 1
fi
[ $# -gt 0 ] || set -- arm64-v8a x86_64
for abi in "$@"; do
  build=$root/build/android/$abi
  out=$root/build/android/jniLibs/$abi
  case $abi in
    arm64-v8a) core=android-arm64 target=aarch64-linux-android26 ;;
    x86_64) core=android-x64 target=x86_64-linux-android26 ;;
    *) echo "error: unknown ABI $abi: arm64-v8a or x86_64" >&2; exit 2 ;;
  esac
  ANDROID_NDK=$ndk "$root/core/cross.sh" $core "$build" -DANDROID_SUPPORT_FLEXIBLE_PAGE_SIZES=ON
  bin=$(echo "$ndk"/toolchains/llvm/prebuilt/*/bin)
  mkdir -p "$out"
  "$bin/llvm-strip" --strip-unneeded -o "$out/libsol_rt.so" "$build/libsol_rt.so"
  "$bin/clang++" --target=$target -std=c++17 -O2 -fPIC -fvisibility=hidden -fno-exceptions -fno-rtti -nostdlib++ -shared -s \
    -Wl,-z,defs -Wl,-z,max-page-size=16384 -Wl,-soname,libsol_rt_jni.so -I"$root/core/include" \
    -o "$out/libsol_rt_jni.so" "$root/bindings/java/src/main/jni/sol_rt_jni.cc" -L"$out" -lsol_rt
done
