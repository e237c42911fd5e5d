#!/usr/bin/env bash
# Checks the crate with none of its features, each, every pair, and all: what is compiled without one must not need it. By
# cargo-hack where that is installed, else by a loop over what Cargo.toml has. Not `nightly`, which no stable compiler takes.
#
# Control: `use crate::capi as _;` in src/alloc.rs, without a condition, is seen in every combination without `capi`.
set -euo pipefail
cd "$(dirname "$0")/.."

if cargo hack --version >/dev/null 2>&1; then
    exec cargo hack check --feature-powerset --depth 2 --exclude-features nightly --no-dev-deps "$@"
fi

mapfile -t features < <(sed -n '/^\[features\]/,/^\[dep/ s/^\([a-z0-9_-]*\) *=.*/\1/p' Cargo.toml | grep -vx nightly)
[ "${#features[@]}" -gt 0 ] || { echo "no features in Cargo.toml" >&2; exit 1; }
combinations=0
for ((set = 0; set < 1 << ${#features[@]}; set++)); do
    chosen=()
    for ((n = 0; n < ${#features[@]}; n++)); do
        ((set >> n & 1)) && chosen+=("${features[n]}")
    done
    [ "${#chosen[@]}" -le 2 ] || [ "${#chosen[@]}" -eq "${#features[@]}" ] || continue
    list=$(IFS=,; echo "${chosen[*]-}")
    echo "features: ${list:-none}"
    # A folder of its own, since warnings are errors here and that is part of what is cached.
    RUSTFLAGS="-D warnings" cargo check --quiet --lib --no-default-features --features "$list" --target-dir target/features "$@"
    combinations=$((combinations + 1))
done
echo "$combinations combinations"
