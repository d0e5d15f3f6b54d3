#!/bin/sh
# Prints src/ffi.rs, the C interface in Rust:   bindings/rust/generate-ffi.sh >src/ffi.rs
# Needs bindgen 0.71, which is Debian's, and rustfmt. The crate holds the result, so that users need neither.
set -eu
cd "$(dirname "$0")"
exec bindgen ../../core/include/sol_rt.h --allowlist-item '(sol|SOL)_.*' --no-doc-comments --no-layout-tests --no-prepend-enum-name \
  --merge-extern-blocks --ctypes-prefix std::ffi --rust-target 1.73 --disable-header-comment --rustfmt-configuration-file "$PWD/rustfmt.toml" \
  --raw-line '//! `sol_rt.h` in Rust, by ../generate-ffi.sh; the header says what it means.' \
  --raw-line '#![allow(missing_docs, dead_code, non_camel_case_types)]'
