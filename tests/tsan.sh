#!/bin/sh
# Unit tests of the layers above the system calls under ThreadSanitizer, over the twin that makes none.
# Needs a nightly toolchain; without one says so and succeeds. The standard library is as it was shipped, without
# instrumentation; what is reported of it is left out (tsan.supp), and tests that rest on its locks cannot be run.
#
# Red if a lock does not order: in `src/lock.rs`, Relaxed in place of every Acquire.
set -eu
cd "$(dirname "$0")/.."

target=x86_64-unknown-linux-gnu
if ! rustc +nightly --print target-libdir --target "$target" 2>/dev/null | xargs test -d; then
    echo "tsan: skipped, no nightly toolchain for $target"
    exit 0
fi
TSAN_OPTIONS="suppressions=$PWD/tests/tsan.supp" \
    RUSTFLAGS="--cfg pcpalloc_twin -Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer" \
    CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/tsan" \
    cargo +nightly test --manifest-path tests/units/Cargo.toml --target "$target" --lib "$@"
echo "tsan: passed"
