#!/usr/bin/env bash
# What part of the time of each program of `workloads` (benches/compare) is the allocator's own: how many samples of the
# processor's clock fall into its functions, which the feature `outline` keeps out of their callers, with everything on one CPU.
#
#   bash benches/share.sh [ROW ...]
#
# What the kernel does for it, page faults mostly, is not among it, nor what a program waits for because of where its blocks
# lie. At the end: which part of the times would be left in the geometric mean if allocating took no time at all.
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
done | awk '{ print; fflush(); left += log(1 - $2 / 100) } END { printf "left without the allocator: %.2f\n", exp(left / NR) }'
