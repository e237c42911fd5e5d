#!/usr/bin/env bash
# The suites on this machine as it is, and in the modes that it does not choose by itself.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/hosts/common.sh

cargo build --lib --tests --examples
mapfile -t programs < <(test_programs target/debug/deps $suites dlopen pcpalloc)
host="Linux $(uname -r | cut -d. -f1,2), glibc $(getconf GNU_LIBC_VERSION | cut -d' ' -f2), $(nproc) CPUs"
within=yes run_suites "$host" "${programs[@]}"
GLIBC_TUNABLES=glibc.pthread.rseq=0 run_suites "$host, GLIBC_TUNABLES=glibc.pthread.rseq=0" "${programs[@]}"
only=$per_thread PCPALLOC_CONF=rseq:off run_suites "$host, PCPALLOC_CONF=rseq:off" "${programs[@]}"
