#!/bin/sh
# Builds and tests the Swift package, with the Swift that is here or Debian's.
set -eu
# shellcheck source=bindings/test-lib.sh
. "$(dirname "$0")/../test-lib.sh"
install swift swiftlang || skip "no Swift can be had"
test_inputs
folder=$(dirname "$SOL_TEST_LIBRARY")
export LD_LIBRARY_PATH="$folder"
cd "$bindings/swift"
set -- --scratch-path "$root/build/bindings/swift" -Xlinker "-L$folder"
# The programs are built first: the compiler is not to meet a full disk.
swift build --build-tests "$@"
on_full_disk swift test --skip-build "$@"
