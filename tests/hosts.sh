#!/usr/bin/env bash
# Makes docs/hosts.md: which suites pass on which hosts, and in which mode the heap runs there.
#
#     bash tests/hosts.sh                  # every script in tests/hosts that has no results for the source as it is
#     bash tests/hosts.sh --only NAME …    # these scripts, whatever results there are; then the page
#     bash tests/hosts.sh --table          # the page alone, of the results there are
#
# All of it takes an hour and a half on two CPUs, half of it for guests under software emulation; some scripts install
# packages. A run that was interrupted goes on where it stopped: each script leaves its rows, with date, commit and time, in
# target/hosts/results, and the page is made of those. What a script printed is beside them in target/hosts. Rows are what
# tests/hosts/common.sh says.
#
# For less than all: SUITES="fallbacks fork" (suites), GUESTS="…" (as the scripts have them), PCPALLOC_TEST_SCALE=0.1 (rounds),
# and on a busy machine GUEST_PATIENCE=4 and HOSTS_TIMEOUT=2000 (what is taken to hang). The page says what was set.
set -euo pipefail
cd "$(dirname "$0")/.."

results=target/hosts/results
mkdir -p "$results"
# In the order of the page; one that is not named here comes last.
order="here static old-glibc musl qemu-x86 aarch64-user aarch64-system overcommit"
all=$(basename -s .sh tests/hosts/*.sh | grep -v -e '^common$' -e '^guest$' -e '^install-')
scripts=$(for name in $order $all; do [ ! -f "tests/hosts/$name.sh" ] || echo "$name"; done | awk '!seen[$0]++')

# The source that results are of: the last commit to it.
state() {
    local changes
    changes=$(git status --porcelain -- src Cargo.toml)
    echo "$(git log -1 --format=%h -- src Cargo.toml)${changes:+ and changes}"
}

# What was asked for that is less than all.
settings() {
    local name
    for name in SUITES GUESTS PCPALLOC_TEST_SCALE; do [ -z "${!name-}" ] || printf '%s="%s" ' "$name" "$(echo ${!name})"; done
}

run() {
    local name=$1 began=$SECONDS ended=
    echo "tests/hosts/$name.sh" >&2
    bash "tests/hosts/$name.sh" >"target/hosts/$name.out" 2>"target/hosts/$name.err" || ended=early
    {
        echo "RUN|$name|$(date -u +%Y-%m-%d)|$(state)|$(((SECONDS - began + 59) / 60))|$(settings)"
        # How many tests of a suite passed is no note on the host.
        sed -nE '/^ROW\|/{s/^(ROW\|[^|]*\|)-\|/\1|/;s/(\|passed\|) *[0-9]+ passed.*/\1/;p}' "target/hosts/$name.out"
        [ -z "$ended" ] || echo "ROW|tests/hosts/$name.sh||all|failed|it ended early: target/hosts/$name.err"
    } >"$results/$name.new"
    mv "$results/$name.new" "$results/$name"
}

case ${1-} in
    --table) ;;
    --only)
        shift
        for name in "$@"; do run "$name"; done
        ;;
    '')
        for name in $scripts; do
            [ -f "$results/$name" ] && [ "$(head -1 "$results/$name" | cut -d'|' -f4,6)" = "$(state)|" ] || run "$name"
        done
        ;;
    *) sed -n '4,6s/^# *//p' "$0" >&2 && exit 2 ;;
esac

{
    cat <<'TEXT'
# Hosts

Which suites pass on which hosts, and in which mode the heap runs there: `stats().mode`, and why, `stats().mode_reason`.
`bash tests/hosts.sh` makes this page. It runs the scripts in `tests/hosts`, each of which says what it installs, and
writes down here when each ran, on which commit of the source, and for how long on this machine.

- `libc_rseq`: per-CPU stacks, with the rseq area that the C library has registered.
- `own_rseq`: per-CPU stacks, with an area that the heap registers for each thread.
- `per_thread`: per-thread stacks.

A suite is a file of that name in `tests/`, and `pcpalloc` the library's own tests; `suite::test` is one test of it. A
suite that is named in neither column of a host was not run there. In guests
suites make a twentieth of their rounds, unless another `PCPALLOC_TEST_SCALE` is noted.
TEXT
    for name in $scripts; do
        if [ -f "$results/$name" ]; then
            sed -n '2,${/^#!/d;/^#/!q;s/^# \{0,1\}//;/^$/q;p}' "tests/hosts/$name.sh" >"$results/$name.about"
            awk -v about="$(cat "$results/$name.about")" -f tests/hosts/page.awk "$results/$name"
            rm "$results/$name.about"
        else
            printf '\n## %s\n\nNot run.\n' "$name"
        fi
    done
    echo
    cat tests/hosts/not-run.md
} >target/hosts/hosts.md
cp target/hosts/hosts.md docs/hosts.md
! grep -hs '|failed|' "$results"/*
