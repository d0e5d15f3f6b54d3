#!/bin/sh
# Builds and tests the crate, with the Rust that is here or Debian's.
set -eu
# shellcheck source=bindings/test-lib.sh
. "$(dirname "$0")/../test-lib.sh"
install cargo cargo || skip "no Rust can be had"
test_inputs
SOL_RT_LIB_DIR=$(dirname "$SOL_TEST_LIBRARY")
export SOL_RT_LIB_DIR LD_LIBRARY_PATH="$SOL_RT_LIB_DIR" CARGO_TARGET_DIR="$root/build/bindings/rust"
cd "$bindings/rust"
install bindgen bindgen || true
if bindgen --version 2>/dev/null | grep -q ' 0\.71\.' && command -v rustfmt >/dev/null; then
  ./generate-ffi.sh | diff src/ffi.rs - || { echo "error: src/ffi.rs is not of today's sol_rt.h: run generate-ffi.sh" >&2; exit 1; }
else
  echo "no bindgen 0.71 with rustfmt: src/ffi.rs is not compared with sol_rt.h"
fi
# The programs are built first: the compiler is not to meet a full disk.
cargo test --offline --no-run --tests --examples
on_full_disk cargo test --offline --tests
RUSTDOCFLAGS=-Dwarnings cargo doc --offline --no-deps --quiet
if command -v cargo-clippy >/dev/null; then cargo clippy --offline --quiet --all-targets -- -D warnings; fi
if command -v cargo-fmt >/dev/null; then cargo fmt --check; fi
