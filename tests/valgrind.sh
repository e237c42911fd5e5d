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
