#!/usr/bin/env bash
# A few suites under the kernel's strict overcommit (`vm.overcommit_memory=2`). The setting is a whole machine's, so they
# have one of their own, under QEMU's software emulation. What it does to a process whose share is used up, the suite
# `exhaustion` does to processes anywhere (`with_strict_overcommit`).
#
# Installs qemu-system-x86 and cpio; downloads a kernel and a C library, 50 MB.
#
#     bash tests/hosts/overcommit.sh [--keep-logs DIRECTORY]
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/hosts/guest.sh
guest_options "$@"
guest_install qemu-system-x86 cpio

: "${SUITES:=fallbacks exhaustion model threads}"
cargo test --no-run $(printf -- '--test %s ' $SUITES)
# Memory may be promised four times: several processes at once have limits of their own that are lower.
plan="suite 300 fallbacks --exact workload_as_it_is
suite 900 exhaustion
suite 300 model
suite 300 threads
suite 600 fallbacks --skip workload_as_it_is"
plan="export PCPALLOC_TEST_SCALE=$PCPALLOC_TEST_SCALE
echo 400 >/proc/sys/vm/overcommit_ratio
echo 2 >/proc/sys/vm/overcommit_memory || echo 'SUITE|overcommit|failed|not to be had'
$(for suite in $SUITES; do grep -E "suite [0-9]+ $suite( |$)" <<<"$plan" || true; done | awk '!seen[$0]++')"
programs=$(for suite in $SUITES; do ls -t target/debug/deps/"$suite"-???????????????? | head -1; done)
name=overcommit
kernel=$(guest_kernel bookworm amd64 cloud-amd64) || { guest_row "$name" - boot skipped "no such kernel" && exit; }
guest_initramfs "$guests/$name.cpio.gz" amd64 bookworm "$plan" $programs
log=$(guest_boot "$name" qemu-system-x86_64 -machine q35 -cpu max -smp 2 -m 3072 -accel tcg,thread=multi \
    -kernel "$kernel" -initrd "$guests/$name.cpio.gz" \
    -append "console=ttyS0 quiet panic=-1 rdinit=/init lpj=4000000 no_timer_check tsc=reliable")
version=$(tr -d '\r' <"$log" | sed -n 's/^GUEST|\([^|]*\)|.*/\1/p' | head -1)
guest_rows "x86-64, Linux ${version:-of bookworm}, 2 CPUs, vm.overcommit_memory=2" "$log"
