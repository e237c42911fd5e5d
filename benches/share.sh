#!/usr/bin/env bash
# What part of the time of each program of `workloads` (benches/compare) is the allocator's own: how many samples of the
# processor's clock fall into its functions, which the feature `outline` keeps out of their callers, with everything on one CPU.
#
#   bash benches/share.sh [ROW ...]
#
# What the kernel does for it, page faults mostly, is not among it, nor what a program waits for because of where its blocks
# lie. At the end: the median; which part of the times would be left in the geometric mean if allocating took no time at all; and
# what the mean of the ratios to the best others would be, by the last comparison on one CPU (results/one-cpu-workloads.md), if it took so much less.
#
# Needs `perf` and leave to use it: `apt-get install linux-perf`, /proc/sys/kernel/perf_event_paranoid at 2 or less.
set -euo pipefail
cd "$(dirname "$0")/compare"
if ! command -v perf > /dev/null; then
    echo "share: there is no perf, so there is nothing to sample with (apt-get install linux-perf)"
    exit 0
fi
export CARGO_PROFILE_RELEASE_DEBUG=false
cargo build --release --quiet --no-default-features --features pcpalloc,pcpalloc/outline,workloads --bin workloads \
    --target-dir target/variants/outline
program=target/variants/outline/release/workloads
data=$(mktemp)
trap 'rm -f "$data"' EXIT

rows=("$@")
if ((${#rows[@]} == 0)); then
    mapfile -t rows < <("$program" --list | sed 's/.*"row":"\([^"]*\)".*/\1/')
fi
for row in "${rows[@]}"; do
    taskset -c 0 perf record --quiet --event cpu-clock --freq 4000 --output "$data" "$program" "$row" > /dev/null
    perf report --input "$data" --stdio --no-children --fields overhead,dso,sym --field-separator '|' 2> /dev/null |
        awk -F'|' -v row="$row" '
            /^ *#/ || NF < 3 { next }
            { part = $1 + 0 }
            $2 ~ /kernel/ { kernel += part; next }
            $3 ~ /pcpalloc|__rust_(alloc|dealloc|realloc)/ { own += part }
            END { printf "%s: %.1f %% the allocator, %.1f %% the kernel\n", row, own, kernel }'
done | awk '
    # The first table of the results: the last column has the ratios.
    FILENAME != "-" { if (/^## /) tables++; if (tables == 1 && split($0, cell, / *\| */) > 11) ratio[cell[2]] = cell[12]; next }
    { print; fflush(); name = $1; sub(":", "", name); share[name] = $2 / 100 }
    # How many programs have a lower share, and how many as low a one, tell which is in the middle.
    function median(   name, other, lower, equal) {
        for (name in share) {
            lower = equal = 0
            for (other in share) { lower += share[other] < share[name]; equal += share[other] == share[name] }
            if (lower <= (length(share) - 1) / 2 && lower + equal > (length(share) - 1) / 2) return share[name]
        }
    }
    END {
        printf "in the median %.0f %% the allocator\n", median() * 100
        for (name in share) left += log(1 - share[name])
        printf "left without the allocator: %.2f\n", exp(left / length(share))
        for (less = 0; less <= 100; less += 20) {
            sum = count = 0
            for (name in share) if (ratio[name] > 0) { sum += log(ratio[name] * (1 - share[name] * less / 100)); count++ }
            if (count) printf "to the best of the others, with %d %% less of it: %.2f\n", less, exp(sum / count)
        }
    }' results/one-cpu-workloads.md -
