#!/usr/bin/env bash
# Many CPUs, several memory nodes, CPUs that are missing, come and go, and kernels older and newer than this machine's:
# x86-64 guests under QEMU's software emulation.
#
# Installs qemu-system-x86 and cpio; downloads kernels and C libraries, 150 MB.
#
#     bash tests/hosts/qemu-x86.sh [--keep-logs DIRECTORY]
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/hosts/guest.sh
guest_options "$@"
guest_install qemu-system-x86 cpio

# Kernel's release and flavour, C library's release, CPUs there are, CPUs there may be, nodes. An emulated CPU takes its
# share of a real one: with more than sixteen, a few suites do.
: "${GUESTS:=bookworm/cloud-amd64/bookworm/16/24/4 trixie/cloud-amd64/trixie/8/8/4
    trixie-backports/cloud-amd64/trixie/4/4/1 bullseye/cloud-amd64/bookworm/4/6/2 bookworm/cloud-amd64/bookworm/64/64/4}"
: "${SUITES:=fallbacks numa cached conservation rcu_torture rseq_boundaries scaling}"
cargo test --no-run $(printf -- '--test %s ' $SUITES)
# What docs/scaling.md has of 16 CPUs; in thousands of operations for each thread.
: "${COUNTS:=20}"
cargo bench --no-run --bench counts

plan="suite 300 fallbacks --exact workload_as_it_is
suite 300 numa
suite 300 cached
suite 300 conservation --exact tokens_are_conserved
suite 500 rcu_torture
suite 300 rseq_boundaries
suite 300 scaling --skip the_page
suite 600 fallbacks --skip workload_as_it_is"
few="suite 900 fallbacks --exact workload_as_it_is
suite 900 conservation --exact tokens_are_conserved
suite 900 numa --exact cpus_come_and_go"
plan="export PCPALLOC_TEST_SCALE=$PCPALLOC_TEST_SCALE PCPALLOC_TEST_HOTPLUG=1
SHOW=' aborts\$|operations|where it belongs|as far as|for each, of|while it was off|^skipped'
$(for suite in $SUITES; do grep -E "suite [0-9]+ $suite( |$)" <<<"$plan" || true; done | awk '!seen[$0]++')"
few="export PCPALLOC_TEST_SCALE=0.4 PCPALLOC_TEST_HOTPLUG=1
SHOW='aborts\$|while it was off|^skipped'
$few"
programs=$(for suite in $SUITES; do ls -t target/debug/deps/"$suite"-???????????????? | head -1; done
    ls -t target/release/deps/counts-???????????????? | head -1)

for guest in $GUESTS; do
    IFS=/ read -r release flavour library cpus possible nodes <<<"$guest"
    name=x86-64-$release-$flavour-$library-$cpus-$possible-$nodes
    kernel=$(guest_kernel "$release" amd64 "$flavour") || { guest_row "$name" - boot skipped "no such kernel" && continue; }
    this=$plan
    [ "$cpus" -ne 16 ] || this="$plan
SHOW='^[|O]' suite 900 counts $COUNTS"
    [ "$cpus" -le 16 ] || this=$few
    guest_initramfs "$guests/$name.cpio.gz" amd64 "$library" "$this" $programs
    # The kernel is not to take slow CPUs for broken clocks or timers, nor measure them.
    calm="lpj=4000000 no_timer_check tsc=reliable nowatchdog"
    # Each has a third-level cache.
    sockets=${SOCKETS:-$nodes}
    # CPUs in equal parts on the nodes, which lie in a ring: neighbours are at 20, those across at 30.
    numa=()
    for ((node = 0; node < nodes; node++)); do
        first=$((node * possible / nodes)) last=$(((node + 1) * possible / nodes - 1))
        numa+=(-object "memory-backend-ram,id=m$node,size=$((4096 / nodes))M"
            -numa "node,nodeid=$node,memdev=m$node,cpus=$first-$last")
    done
    for ((node = 0; node < nodes; node++)); do
        for ((other = node + 1; other < nodes; other++)); do
            apart=$((other - node < nodes - other + node ? other - node : nodes - other + node))
            numa+=(-numa "dist,src=$node,dst=$other,val=$((10 + 10 * apart))")
        done
    done
    log=$(guest_boot "$name" qemu-system-x86_64 -machine q35 -cpu max -m 4096 "${numa[@]}" \
        -smp "$cpus,maxcpus=$possible,sockets=$sockets,cores=$((possible / sockets)),threads=1" \
        -accel tcg,thread=multi -kernel "$kernel" -initrd "$guests/$name.cpio.gz" \
        -append "console=ttyS0 quiet panic=-1 rdinit=/init $calm")
    version=$(tr -d '\r' <"$log" | sed -n 's/^GUEST|\([^|]*\)|.*/\1/p' | head -1)
    guest_rows "x86-64, Linux ${version:-of $release}, glibc of $library, $cpus of $possible CPUs, $nodes nodes" "$log"
done
