#!/usr/bin/env bash
# The suites on musl, statically linked: threads register areas of their own, and give them back before they end.
# Installs what it needs: see install-musl.sh.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/hosts/common.sh

if ! bash tests/hosts/install-musl.sh >"$logs/install-musl.log" 2>&1; then
    row "musl, static" "" "all" skipped "the packages could not be installed: $logs/install-musl.log"
    exit
fi
target=x86_64-unknown-linux-musl
(
    export PATH=/usr/bin:/bin:/usr/sbin:/sbin RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1
    export CARGO_TARGET_X86_64_UNKNOWN_LINUX_MUSL_LINKER=musl-gcc
    export RUSTFLAGS="-L native=$PWD/target/musl-lib -C link-self-contained=no"
    # Some suites are storms of signals that handlers have to keep up with: at least a little optimised.
    /usr/bin/cargo test --no-run -Zbuild-std --config profile.dev.package.pcpalloc.opt-level=1 \
        --target "$target" --target-dir target/musl --lib $(printf -- '--test %s ' $suites)
)
export PCPALLOC_TEST_OPTIMISED=1
mapfile -t programs < <(test_programs "target/musl/$target/debug/deps" $suites pcpalloc)
run_suites "musl 1.2.3, static" "${programs[@]}"
only=$per_thread
export PCPALLOC_CONF=rseq:off
run_suites "musl 1.2.3, static, PCPALLOC_CONF=rseq:off" "${programs[@]}"
