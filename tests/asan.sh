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
    cargo +nightly test --manifest-path tests/units/Cargo.toml --target "$target" --lib --test twin "$@"
echo "asan: passed"

# The heap as it is, sections and all, in programs built with AddressSanitizer: with the feature it knows our blocks;
# without, it knows of nothing that the heap serves: the control.
target_dir="${CARGO_TARGET_DIR:-target}/asan-tools"
build() {
    RUSTFLAGS="-Zsanitizer=address" CARGO_TARGET_DIR="$target_dir/$1" \
        cargo +nightly build --quiet --release --target "$target" --manifest-path tests/tools/Cargo.toml $2
}
build plain ""
build asan "--features asan"
check() { # features, argument, "found" or "unnoticed"
    # LeakSanitizer looks for pointers in its own blocks alone, and misses those that lie in ours.
    output=$(ASAN_OPTIONS=detect_leaks=0 "$target_dir/$1/$target/release/pcpalloc-tools" "$2" 2>&1) && status=0 || status=$?
    found=unnoticed
    if [ "$status" -ne 0 ] && echo "$output" | grep -q "AddressSanitizer: use-after-poison"; then found=found; fi
    if [ "$found" != "$3" ] || { [ "$3" = unnoticed ] && [ "$status" -ne 0 ]; }; then
        echo "$output"
        echo "asan: $1, $2: $found with status $status, and not $3"
        exit 1
    fi
}
check plain sound unnoticed
check asan sound unnoticed
for mistake in use-after-free use-after-free-run overflow; do
    check plain $mistake unnoticed
    check asan $mistake found
done
echo "asan: what is wrong with our blocks is found with the feature, and unnoticed without"
