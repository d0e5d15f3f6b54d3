#!/bin/sh
# Builds wheels with the native operators: scripts/build-wheels.sh ENVIRONMENT FOLDER ARCHITECTURE...
# ENVIRONMENT is a virtual environment with the packages ziglang, auditwheel and delvewheel. Architectures: x86_64 and aarch64 for Linux,
# win_amd64 for Windows, which needs mingw-w64 (Debian's g++-mingw-w64-x86-64-posix).
# The native core is in, built with releases that CMake fetches; without network give $CMAKE_ARGS with
# -DFETCHCONTENT_SOURCE_DIR_PCRE2=FOLDER and the like for UTF8PROC and JSON.
#
# Zig's compiler makes programs for other processors and for an old glibc, so that this needs neither a container nor a
# cross compiler. auditwheel then names the wheel after the oldest glibc that it runs on.
set -eu

GLIBC=2.17 # manylinux2014, older than any system that ONNX Runtime's own wheels run on
environment=$(cd "$1" && pwd)
folder=$2
shift 2
cd "$(dirname "$0")/.."
work=$PWD/build/wheels

# wheel ARCHITECTURE PLATFORM SYSTEM PROCESSOR: the compilers are cc and c++ in the architecture's work folder.
wheel() {
    SOL_NATIVE=ON SOL_CORE=ON SOL_RT_FETCH=ON SOL_CUDA=OFF CC="$work/$1/cc" CXX="$work/$1/c++" LDFLAGS=-s _PYTHON_HOST_PLATFORM="$2" \
        CMAKE_ARGS="-DCMAKE_SYSTEM_NAME=$3 -DCMAKE_SYSTEM_PROCESSOR=$4 -DHIGHWAY_INCLUDE_DIR=$work/headers -DONNXRUNTIME_INCLUDE_DIR=$work/headers ${CMAKE_ARGS:-}" \
        "$environment/bin/python" -m pip wheel --no-deps -w "$work/$1/wheel" -C build-dir="$work/$1/build" -C install.strip=false .
}

"$environment/bin/python" scripts/fetch_headers.py "$work/headers" >/dev/null || {
    echo "using the headers in /usr/include" >&2
    "$environment/bin/python" scripts/fetch_headers.py "$work/headers" --from /usr/include >/dev/null
}
for architecture in "$@"; do
    rm -rf "$work/$architecture/wheel"
    # A build folder of its own: CMake keeps the compiler that it found first. The libraries are stripped when linked,
    # because the strip of this machine may not know the other processor. What the core links is fetched: installed
    # libraries are there for this processor and this glibc alone.
    mkdir -p "$work/$architecture"
    if [ "$architecture" = win_amd64 ]; then
        for tool in cc:gcc c++:g++; do
            compiler=$(command -v "x86_64-w64-mingw32-${tool#*:}-posix") || { echo "error: mingw-w64 is missing" >&2; exit 1; }
            ln -sf "$compiler" "$work/$architecture/${tool%:*}"
        done
        wheel "$architecture" win-amd64 Windows AMD64
        # Ends with an error if a library needs one that is neither here nor Windows' own.
        "$environment/bin/delvewheel" repair --analyze-existing -w "$folder" "$work/$architecture/wheel/"*.whl
        continue
    fi
    zig=$("$environment/bin/python" -c 'import pathlib, ziglang; print(pathlib.Path(ziglang.__file__).with_name("zig"))')
    for tool in cc c++; do # programs of one word: CMake loses the second one of CC
        printf '#!/bin/sh\nexec "%s" %s -target %s "$@"\n' "$zig" $tool "$architecture-linux-gnu.$GLIBC" >"$work/$architecture/$tool"
        chmod +x "$work/$architecture/$tool"
    done
    wheel "$architecture" "linux-$architecture" Linux "$architecture"
    PATH="$environment/bin:$PATH" "$environment/bin/auditwheel" repair -w "$folder" "$work/$architecture/wheel/"*.whl
done
