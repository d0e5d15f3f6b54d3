#!/bin/sh
# Installs what the system lacks:   scripts/install-packages.sh [--list] [build|test-all|test-bindings]...
#   none of them   to install sol_rt from source: Python's venv, a compiler, headers, the native core's libraries
#   build          ccache besides, so that tests do not compile again what is installed
#   test-all       what `make test-all` needs besides: emulators, a software GPU
#   test-bindings  what the bindings' tests need besides: other languages
# --list only prints the packages that are missing. Otherwise apt-get installs them, as root or by a sudo that asks for no
# password. What an installation needs and cannot have is an error that says what to run; tests report at their end what else is missing.
set -eu
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
CXX=${CXX:-c++}
# In the order of the CMake files: fetched headers come first.
INCLUDES="-Ibuild/headers -I/usr/include/onnxruntime -I/usr/include/onnxruntime/core/session"

compiles() { # compiles LINE...: the C++ preprocessor takes these lines
    # shellcheck disable=SC2086
    printf '%s\n' "$@" | $CXX -x c++ -std=c++17 $INCLUDES -E - >/dev/null 2>&1
}
has_headers() { # Highway 1.2 or newer, ONNX Runtime 1.21 or newer
    compiles '#include <hwy/highway.h>' '#include <onnxruntime_c_api.h>' \
        '#if HWY_MAJOR * 100 + HWY_MINOR < 102 || ORT_API_VERSION < 21' '#error' '#endif'
}
has_libraries() { compiles '#define PCRE2_CODE_UNIT_WIDTH 8' '#include <pcre2.h>' '#include <utf8proc.h>' '#include <nlohmann/json.hpp>'; }

missing=""
need() { # need PACKAGES COMMAND...: adds the packages if the command fails
    packages=$1
    shift
    "$@" >/dev/null 2>&1 || missing="$missing $packages"
}
lacking() { # sets $missing to the packages of the groups that are not here
    missing=""
    need python3-venv "$PYTHON" -c 'import ensurepip, venv'
    need g++ command -v "${CXX%% *}"
    need "libhwy-dev libonnxruntime-dev" has_headers
    [ "${SOL_RT_FETCH:-OFF}" = ON ] || need "nlohmann-json3-dev libpcre2-dev libutf8proc-dev" has_libraries
    for group in "$@"; do
        case $group in
            build) need ccache command -v ccache ;;
            test-all)
                need valgrind command -v valgrind
                need g++-aarch64-linux-gnu command -v aarch64-linux-gnu-g++
                need qemu-user command -v qemu-aarch64
                need "libvulkan1 mesa-vulkan-drivers" ls /usr/share/vulkan/icd.d/lvp_icd.*json
                ;;
            test-bindings)
                need make command -v make
                need cmake command -v cmake
                need npm command -v npm
                need default-jdk-headless command -v javac
                need cargo command -v cargo
                ;;
            *)
                echo "error: $0: got '$group', expected --list, build, test-all or test-bindings" >&2
                exit 2
                ;;
        esac
    done
}

install() { # install PACKAGE...: all together, or those that can be had
    as_root=""
    [ "$(id -u)" = 0 ] || as_root="sudo -n"
    echo "installing $*" >&2
    $as_root apt-get update -qq >/dev/null || echo "apt-get update failed: going on with the package lists that are here" >&2
    apt="env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 install -y -qq --no-install-recommends"
    # shellcheck disable=SC2086
    $as_root $apt "$@" >/dev/null 2>&1 || for package in "$@"; do
        $as_root $apt "$package" >/dev/null || echo "$package cannot be installed" >&2
    done
}
may_install() {
    command -v apt-get >/dev/null && { [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null; }
}

newer_headers() { # copies the headers out of a newer release's packages, which apt checks by signature and does not install
    [ -r /etc/os-release ] || return 1
    # shellcheck disable=SC1091
    . /etc/os-release
    case ${ID:-} in
        debian) newer="trixie main" ;;
        ubuntu) newer="resolute main universe" ;;
        *) return 1 ;;
    esac
    # shellcheck disable=SC2016
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "Codename: ${VERSION_CODENAME:-}" | head -n 1)
    folder=$(mktemp -d)
    mkdir -p "$folder/lists/partial" "$folder/cache/archives/partial"
    echo "deb $mirror $newer" >"$folder/list"
    apt="apt-get -qq -o Dir::State::lists=$folder/lists -o Dir::Cache=$folder/cache -o Dir::Etc::sourcelist=$folder/list -o Dir::Etc::sourceparts=/dev/null"
    # shellcheck disable=SC2086
    (cd "$folder" && $apt update && $apt download libhwy-dev libonnxruntime-dev && for package in *.deb; do dpkg -x "$package" .; done) \
        >/dev/null 2>&1 && "$PYTHON" scripts/fetch_headers.py --from "$folder/usr/include" >&2
    status=$?
    rm -rf "$folder"
    return $status
}

case $(uname -s) in
    MINGW* | MSYS*) exit 0 ;; # CMake finds the compilers of Visual Studio, which are not in PATH
esac
list=""
if [ "${1:-}" = --list ]; then
    list=yes
    shift
fi
lacking "$@"
if [ -n "$list" ]; then
    # shellcheck disable=SC2086
    [ -z "$missing" ] || printf '%s\n' $missing
    exit 0
fi
# shellcheck disable=SC2086
[ -z "$missing" ] || ! may_install || install $missing
has_headers || ! command -v "${CXX%% *}" >/dev/null || {
    echo "fetching headers of Highway and ONNX Runtime: this system's packages are too old or missing" >&2
    newer_headers || "$PYTHON" scripts/fetch_headers.py >&2 || true
}
lacking
[ -n "$missing" ] || exit 0
if ! command -v apt-get >/dev/null; then
    echo "error: this machine has no apt-get: install what these packages of Debian hold, then run make again; python3 scripts/fetch_headers.py gets the headers of Highway and ONNX Runtime:$missing" >&2
elif ! may_install; then
    echo "error: packages are missing; run: sudo apt-get install$missing, then run make again" >&2
else
    echo "error: these packages cannot be had:$missing. Highway >= 1.2 and ONNX Runtime >= 1.21: on a machine with a network run python3 scripts/fetch_headers.py, and copy its folder build/headers here" >&2
fi
exit 1
