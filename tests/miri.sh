#!/bin/sh
# The layers above the system calls under Miri, over the twin that makes none: unit tests and tests/twin.rs.
# Needs a nightly toolchain with Miri (`rustup +nightly component add miri rust-src`); without one says so and succeeds.
set -eu
cd "$(dirname "$0")/.."

if ! cargo +nightly miri --version >/dev/null 2>&1; then
    echo "miri: skipped, no nightly toolchain with Miri"
    exit 0
fi
# The heap casts addresses of pages to pointers, whose provenance the reservation has exposed.
RUSTFLAGS="--cfg pcpalloc_twin" MIRIFLAGS="-Zmiri-permissive-provenance -Zmiri-ignore-leaks" \
    CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/miri" \
    cargo +nightly miri test --manifest-path tests/units/Cargo.toml --lib --test twin "$@"
echo "miri: passed"
