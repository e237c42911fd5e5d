#!/usr/bin/env bash
# aarch64 with a kernel: QEMU boots Debian kernels, old and new, with pages of 4 and 16 KiB, and the suites that run the
# sections themselves. (Debian has no kernel with pages of 64 KiB.)
#
# Installs rustc-web, the standard library for arm64 and a cross compiler (see aarch64-user.sh), and qemu-system-arm and
# cpio. Downloads kernels and C libraries, 300 MB. Software emulation: half an hour, less with fewer of GUESTS.
#
#     bash tests/hosts/aarch64-system.sh [--keep-logs DIRECTORY]
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/hosts/guest.sh
guest_options "$@"
bash tests/hosts/aarch64-user.sh --build-only
guest_install qemu-system-arm cpio
guest_strip=aarch64-linux-gnu-strip

# Kernel's release and flavour, C library's release, CPUs.
: "${GUESTS:=bookworm/cloud-arm64/bookworm/4 trixie/cloud-arm64/trixie/3 trixie-backports/cloud-arm64/trixie/4
    trixie/arm64-16k/trixie/2 trixie-backports/arm64-16k/bookworm/2}"
: "${SUITES:=fallbacks rseq_boundaries rseq_sites conservation cached nolock_floor nolock_storm rcu_torture}"

plan="export PCPALLOC_TEST_SCALE=$PCPALLOC_TEST_SCALE
suite 300 fallbacks --exact workload_as_it_is
SHOW=' aborts\$|operations|are not come to|are wrong'
suite 300 rseq_boundaries
suite 500 rseq_sites
suite 500 conservation --skip faults_lose_tokens
suite 300 fallbacks --skip workload_as_it_is
suite 300 cached
suite 300 nolock_floor
suite 300 nolock_storm
suite 500 rcu_torture"
plan=$(for suite in $SUITES; do grep -E "suite [0-9]+ $suite( |$)" <<<"$plan" || true; done | awk '!seen[$0]++')
plan="export PCPALLOC_TEST_SCALE=$PCPALLOC_TEST_SCALE
SHOW=' aborts\$|operations|are not come to|are wrong'
$plan"
programs=$(for suite in $SUITES; do
    ls -t target/aarch64-unknown-linux-gnu/debug/deps/"$suite"-???????????????? | head -1
done)
for guest in $GUESTS; do
    IFS=/ read -r release flavour library cpus <<<"$guest"
    name=aarch64-$release-$flavour-$library
    kernel=$(guest_kernel "$release" arm64 "$flavour") || { guest_row "$name" - boot skipped "no such kernel" && continue; }
    guest_initramfs "$guests/$name.cpio.gz" arm64 "$library" "$plan" $programs
    log=$(guest_boot "$name" qemu-system-aarch64 -machine virt -cpu neoverse-n1 -smp "$cpus" -m 2048 \
        -accel tcg,thread=multi -kernel "$kernel" -initrd "$guests/$name.cpio.gz" \
        -append "console=ttyAMA0 quiet panic=-1 rdinit=/init")
    case $flavour in *16k) pages=16 ;; *) pages=4 ;; esac
    version=$(tr -d '\r' <"$log" | sed -n 's/^GUEST|\([^|]*\)|.*/\1/p' | head -1)
    guest_rows "aarch64, Linux ${version:-of $release}, glibc of $library, $pages KiB pages, $cpus CPUs" "$log"
done
