#!/bin/sh
# Makes sure that the C++ compiler finds the headers that the native operators need: Highway and ONNX Runtime's C API.
# If headers are missing, installs Debian's packages with apt-get. If it may not use apt-get, says what to install.
set -eu

CXX=${CXX:-c++}
PACKAGES="libhwy-dev libonnxruntime-dev"

if ! command -v "$CXX" >/dev/null 2>&1; then
    PACKAGES="g++ $PACKAGES"
    missing="a C++ compiler"
elif printf '#include <hwy/highway.h>\n#include <onnxruntime/onnxruntime_c_api.h>\n' | "$CXX" -x c++ -std=c++17 -E - >/dev/null 2>&1 ||
    printf '#include <hwy/highway.h>\n#include <onnxruntime_c_api.h>\n' | "$CXX" -x c++ -std=c++17 -E - >/dev/null 2>&1; then
    exit 0
else
    missing="the headers of Highway or ONNX Runtime"
fi

if ! command -v apt-get >/dev/null 2>&1; then
    echo "error: $missing not found, and this machine has no apt-get: install Highway >= 1.0 and ONNX Runtime >= 1.21 with their headers (Debian: $PACKAGES), then run make again" >&2
    exit 1
fi
if [ "$(id -u)" = 0 ]; then
    as_root=""
elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
    as_root="sudo -n"
else
    echo "error: $missing not found; run: sudo apt-get install $PACKAGES, then run make again" >&2
    exit 1
fi

echo "installing $PACKAGES" >&2
$as_root apt-get update -qq
DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends $PACKAGES >/dev/null
