#!/bin/sh
# Installs what the web binding needs, builds the core as wasm, checks types, and runs its tests in Node and in a headless Chromium.
set -eu
# shellcheck source=bindings/test-lib.sh
. "$(dirname "$0")/../test-lib.sh"
cd "$bindings/web"

install node nodejs || skip "no node"
install npm npm || skip "no npm"
[ "$(node -p 'Number(process.versions.node.split(".")[0]) >= 20')" = true ] || skip "node $(node --version) is older than version 20"
install emcmake emscripten || skip "no emscripten to build the core with"
install cmake cmake || skip "no cmake"
install chromium chromium || echo "no chromium: the browser's tests are skipped"
# the lock file names no registry, so npm takes the configured one
if [ ! -e node_modules/.package-lock.json ] || [ package-lock.json -nt node_modules/.package-lock.json ]; then
  npm ci --ignore-scripts --no-audit --no-fund --silent || skip "npm cannot install the packages"
fi
# shellcheck disable=SC2086  # options for CMake, as that of a folder with sources where there is no network
./build-core.sh ${SOL_RT_WASM_OPTIONS:-}
SOL_RT=${SOL_RT:-$(command -v sol-rt || true)} # exports a bundle for browsers; without it those tests are skipped
export SOL_RT
npm run --silent check
npm run --silent types
# one file at a time: ONNX Runtime and Chromium take all processors
node --test --test-concurrency=1 --test-reporter=spec test/*.test.js
