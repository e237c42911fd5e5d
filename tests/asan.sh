#!/bin/sh
# The layers above the system calls under AddressSanitizer, over the twin that makes none: unit tests and tests/twin.rs.
# Needs a nightly toolchain; without one says so and succeeds.
set -eu
cd "$(dirname "$0")/.."

target=x86_64-unknown-linux-gnu
if ! cargo +nightly --version >/dev/null 2>&1; then
    echo "asan: skipped, no nightly toolchain"
    exit 0
fi
if ! rustc +nightly --print target-libdir --target "$target" 2>/dev/null | xargs test -d; then
    echo "asan: skipped, the nightly toolchain has no standard library for $target"
    exit 0
fi

# Sections over rseq do not exist under the twin. What the heap never gives back is reachable from its statics.
RUSTFLAGS="--cfg pcpalloc_twin -Zsanitizer=address" \
    CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/asan" \
    cargo +nightly test --target "$target" --lib --test twin "$@"
echo "asan: passed"
