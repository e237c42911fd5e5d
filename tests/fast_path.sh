#!/usr/bin/env bash
# What a feature that is not used costs on the fast paths: nothing. The listings that tests/fast_path.rs makes of an
# optimised program (every instruction on the way of an allocation, a free, a resize, a nolock allocation, a deferred free and
# a read-side section) are the same with the feature as without, instruction for instruction.
#
# Control: `add {c}, -8` for `sub {c}, 8` in `pop` (src/percpu/x86_64.rs) in the second program alone, which leaves every
# count of fast_path.txt as it is: red.
set -euo pipefail
cd "$(dirname "$0")/.."
directory=${CARGO_TARGET_DIR:-target}/fast_path
mkdir -p "$directory"
directory=$(cd "$directory" && pwd)

listing() { # name, flags of cargo
    local name=$1
    shift
    PCPALLOC_LISTING="$directory/$name.txt" cargo test --quiet --release --test fast_path "$@"
}

listing none
for features in profile; do
    listing "$features" --features "$features"
    if ! diff -u "$directory/none.txt" "$directory/$features.txt"; then
        echo "fast_path: with $features the fast paths are other ones"
        exit 1
    fi
    echo "fast_path: with $features, $(grep -c '^    ' "$directory/$features.txt") instructions on $(grep -vc '^    ' "$directory/$features.txt") paths are the same"
done
