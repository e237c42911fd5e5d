#!/usr/bin/env bash
# aarch64 without a kernel of its own: Debian's cross compiler, and QEMU's emulation of programs, which has no rseq. The
# suites run on per-thread stacks.
#
# Installs rustc-web, libstd-rust-web-dev:arm64 (which adds the architecture arm64 to dpkg), gcc-aarch64-linux-gnu,
# libc6-dev-arm64-cross and qemu-user-static: 600 MB. rustup's own tools stay the ones that are found first.
#
#     bash tests/hosts/aarch64-user.sh [--build-only]
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/hosts/guest.sh

dpkg --print-foreign-architectures | grep -q '^arm64$' || { dpkg --add-architecture arm64 && apt-get update -q >&2; }
guest_install rustc-web libstd-rust-web-dev:arm64 gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static
target=aarch64-unknown-linux-gnu
# The last two for here, the others for aarch64-system.sh.
: "${SUITES:=fallbacks cached conservation rseq_boundaries rseq_sites nolock_floor nolock_storm rcu_torture realloc sizes}"
export RUSTC=/usr/bin/rustc CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
cargo test --target "$target" --no-run --lib $(printf -- '--test %s ' $SUITES)
[ "${1-}" != --build-only ] || exit 0

# Tests that start themselves again are started with the emulator in front. The C library is that of libc6:arm64, which
# came with the standard library: under the one of libc6-arm64-cross threads do not start.
export PCPALLOC_TEST_RUNNER=qemu-aarch64-static PCPALLOC_TEST_SCALE
host="aarch64, $(qemu-aarch64-static --version | sed -n 's/.*version \([0-9.]*\).*/QEMU \1/p') in user mode"
run() {
    local suite=$1 program
    shift
    program=$(ls -t target/$target/debug/deps/"$suite"-???????????????? | head -1)
    if timeout "${USER_SECONDS:-580}" $PCPALLOC_TEST_RUNNER "$program" "$@" >"$guests/logs/user-$suite.log" 2>&1; then
        guest_row "$host" per_thread "$suite" passed "$(grep '^test result' "$guests/logs/user-$suite.log" | tail -1 | cut -d' ' -f4-7)"
    else
        guest_row "$host" per_thread "$suite" failed "$guests/logs/user-$suite.log"
    fi
}
# The tables and enumerations of the library's own tests are the same on every machine, and take long here.
run pcpalloc percpu:: sys::
run fallbacks workload_as_it_is
run realloc
run sizes
