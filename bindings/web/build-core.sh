#!/bin/sh
# Builds the core for this package, core/sol_rt.js and core/sol_rt.wasm, and prints their sizes. Needs Emscripten and CMake (Debian: emscripten, cmake).
# Arguments go to CMake; without network give -DFETCHCONTENT_SOURCE_DIR_PCRE2=FOLDER and the like for UTF8PROC and JSON.
set -eu
web=$(cd "$(dirname "$0")" && pwd)
build=$web/../../build/wasm
"$web/../../core/cross.sh" wasm "$build" "$@" >&2
mkdir -p "$web/core"
for name in sol_rt.js sol_rt.wasm; do
  case $name in
    *.js) { echo "// @ts-nocheck"; cat "$build/$name"; } >"$web/core/$name" ;; # Emscripten's code has no types
    *) cp "$build/$name" "$web/core/$name" ;;
  esac
  echo "$name: $(wc -c <"$web/core/$name") bytes, $(gzip -9 <"$web/core/$name" | wc -c) by gzip"
done
