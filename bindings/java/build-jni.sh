#!/bin/sh
# Builds libsol_rt_jni.so for a JVM on Linux:   bindings/java/build-jni.sh PATH_OF_LIBSOL_RT OUT_FOLDER
# Both libraries then lie in OUT_FOLDER, as an application ships them.
set -eu
if [ $# -ne 2 ]; then
  echo "usage: $0 PATH_OF_LIBSOL_RT OUT_FOLDER" >&2
  exit 2
fi
if [ "$(uname -s)" != Linux ]; then
  echo "error: got $(uname -s), expected Linux: the JNI library of a desktop JVM is built there alone" >&2
  exit 1
fi
here=$(cd "$(dirname "$0")" && pwd)
home=${JAVA_HOME:-$(dirname "$(dirname "$(readlink -f "$(command -v javac)")")")}
mkdir -p "$2"
cp "$1" "$2/"
${CXX:-c++} -std=c++17 -O2 -Wall -Wextra -fPIC -fvisibility=hidden -fno-exceptions -fno-rtti -I"$home/include" -I"$home/include/linux" \
  -I"$here/../../core/include" -c "$here/src/main/jni/sol_rt_jni.cc" -o "$2/sol_rt_jni.o"
# Linked by the C driver: no C++ runtime library is needed. libsol_rt is looked for beside this library.
# shellcheck disable=SC2016
${CC:-cc} -shared -o "$2/libsol_rt_jni.so" "$2/sol_rt_jni.o" -L"$2" -lsol_rt -Wl,-z,defs -Wl,-z,max-page-size=16384 '-Wl,-rpath,$ORIGIN'
rm "$2/sol_rt_jni.o"
