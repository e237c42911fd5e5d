#!/bin/sh
# The workload of tests/fallbacks.rs under Valgrind, which has no rseq: the stacks belong to threads.
# Needs Valgrind; without it says so and succeeds.
set -eu
cd "$(dirname "$0")/.."

if ! command -v valgrind >/dev/null 2>&1; then
    echo "valgrind: skipped, it is not installed"
    exit 0
fi

test=workload_as_it_is
if ! messages=$(cargo test --release --test fallbacks --no-run --message-format=json); then
    echo "valgrind: the program could not be built"
    exit 1
fi
program=$(printf '%s\n' "$messages" | sed -n 's/.*"executable":"\([^"]*fallbacks-[^"]*\)".*/\1/p' | tail -n 1)
if [ -z "$program" ]; then
    echo "valgrind: there is no program to run"
    exit 1
fi

# A fraction of the rounds: it is some 30 times as slow.
output=$(PCPALLOC_TEST_SCALE="${PCPALLOC_TEST_SCALE:-0.2}" valgrind --error-exitcode=9 \
    "$program" --exact "$test" --nocapture --test-threads=1 2>&1) && status=0 || status=$?
echo "$output"
if [ "$status" -ne 0 ]; then
    echo "valgrind: failed with status $status"
    exit "$status"
fi
echo "$output" | grep -q "^mode: PerThread$" || { echo "valgrind: the stacks did not belong to threads"; exit 1; }
echo "$output" | grep -q "^test result: ok. 1 passed" || { echo "valgrind: the test did not run"; exit 1; }
echo "valgrind: passed"

# With the feature, Memcheck knows our blocks; without, it knows of nothing that the heap serves: the control.
target="${CARGO_TARGET_DIR:-target}/tools"
tools="cargo build --quiet --release --manifest-path tests/tools/Cargo.toml"
CARGO_TARGET_DIR="$target/plain" $tools
CARGO_TARGET_DIR="$target/valgrind" $tools --features valgrind
check() { # features, argument, "found" or "unnoticed", and what Memcheck says of it
    output=$(valgrind --error-exitcode=9 "$target/$1/release/pcpalloc-tools" "$2" 2>&1) && status=0 || status=$?
    found=unnoticed
    if [ "$status" -eq 9 ] && echo "$output" | grep -q "${4:-.}"; then found=found; fi
    if [ "$found" != "$3" ] || { [ "$3" = unnoticed ] && [ "$status" -ne 0 ]; }; then
        echo "$output"
        echo "valgrind: $1, $2: $found with status $status, and not $3"
        exit 1
    fi
}
check plain sound unnoticed
check valgrind sound unnoticed
for mistake in use-after-free use-after-free-run overflow; do
    check plain $mistake unnoticed
done
check valgrind use-after-free found "Invalid read of size 1"
check valgrind use-after-free-run found "4,096 bytes inside a block of size 307,200 free'd"
check valgrind overflow found "Invalid read of size 1"
check valgrind double-free found "Invalid free()"
echo "valgrind: what is wrong with our blocks is found with the feature, and unnoticed without"
