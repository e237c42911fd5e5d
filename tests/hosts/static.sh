#!/usr/bin/env bash
# The suites in programs that have glibc in them.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/hosts/common.sh

target=$(rustc -vV | sed -n 's/^host: //p')
# The C library's own warnings, of functions that want its shared form at run time, are not ours.
RUSTFLAGS="-C target-feature=+crt-static" cargo test --no-run --target "$target" --target-dir target/static \
    --lib $(printf -- '--test %s ' $suites)
mapfile -t programs < <(test_programs "target/static/$target/debug/deps" $suites pcpalloc)
host="glibc $(getconf GNU_LIBC_VERSION | cut -d' ' -f2), static"
run_suites "$host" "${programs[@]}"
GLIBC_TUNABLES=glibc.pthread.rseq=0 run_suites "$host, GLIBC_TUNABLES=glibc.pthread.rseq=0" "${programs[@]}"
