#!/usr/bin/env bash
# Compiles the library by the oldest Rust that Cargo.toml names: with no features, and with all but `nightly`. Wants that
# toolchain (`rustup toolchain install 1.88 --profile minimal`); where it is missing, says so and does nothing.
#
# Control: `const _: core::time::Duration = core::time::Duration::from_mins(1);` (Rust 1.91) in src/lib.rs is an error.
set -euo pipefail
cd "$(dirname "$0")/.."

oldest=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
toolchain=$(rustup toolchain list 2>/dev/null | grep -oE "^$oldest[.0-9]*-[^ ]+" | head -1 || true)
if [ -z "$toolchain" ]; then
    echo "skipped: no Rust $oldest (rustup toolchain install $oldest --profile minimal)"
    exit
fi
mapfile -t features < <(sed -n '/^\[features\]/,/^\[dep/ s/^\([a-z0-9_-]*\) *=.*/\1/p' Cargo.toml | grep -vx nightly)
for list in "" "$(IFS=,; echo "${features[*]}")"; do
    echo "Rust $oldest, features: ${list:-none}"
    cargo "+$toolchain" check --quiet --lib --no-default-features --features "$list" --target-dir target/msrv
done
