#!/usr/bin/env bash
# What it costs in bytes of code that allocations are compiled into their callers: two programs of benches/compare with
# the allocator as it is, with its feature `outline`, and with the system's, whose functions are always called.
#
#   bash benches/inlining.sh
#
# Copies are counted by the descriptors that each section has in the ELF section `__rseq_cs`, 32 bytes each; without
# `outline` nearly all of them are in allocations and deallocations.
set -euo pipefail
cd "$(dirname "$0")/compare"
export CARGO_PROFILE_RELEASE_DEBUG=false

build() { # VARIANT FEATURES
    cargo build --release --quiet --no-default-features --features "$2,workloads" --bin index --bin workloads \
        --target-dir "target/variants/$1"
}

# Bytes of a section of an ELF file, 0 if it has none.
section() { # FILE SECTION
    size -A -d "$1" | awk -v name="$2" '$1 == name { bytes = $2 } END { print bytes + 0 }'
}

build pcpalloc pcpalloc
build outline pcpalloc,pcpalloc/outline
build system system

for program in index workloads; do
    for variant in pcpalloc outline system; do
        file="target/variants/$variant/release/$program"
        text=$(($(section "$file" .text) + $(section "$file" .eh_frame) + $(section "$file" __rseq_cs)))
        copies=$(($(section "$file" __rseq_cs) / 32))
        printf '%s %s: %d bytes of code, unwinding tables and descriptors; %d copies of sections\n' \
            "$program" "$variant" "$text" "$copies"
        declare "text_$variant=$text" "copies_$variant=$copies"
    done
    awk -v program="$program" -v bytes=$((text_pcpalloc - text_outline)) -v copies=$((copies_pcpalloc - copies_outline)) \
        'BEGIN { printf "%s: %d bytes more for each of %d copies\n", program, bytes / copies, copies }'
done
