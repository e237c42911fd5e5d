#!/usr/bin/env bash
# The suites on a glibc from before rseq: Debian 11's 2.31, unpacked and linked against, with its own dynamic linker. Then,
# of a program that is linked here, that it asks for no version of glibc that came with rseq.
# Downloads libc6, libc6-dev and libgcc-s1 by apt, and installs nothing.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/hosts/common.sh

target=$(rustc -vV | sed -n 's/^host: //p')
host="glibc 2.31"
root=$PWD/target/glibc-2.31

# What a program needs to have started: on Debian 12, what the standard library asks for is 2.34.
cargo build --lib --test fallbacks
program=$(test_programs target/debug/deps fallbacks)
versions=$(objdump -T "$program" | grep -o 'GLIBC_2\.[0-9]*' | sort -Vu | tail -1)
if objdump -T "$program" | grep -E '__rseq|GLIBC_2\.(3[5-9]|[4-9][0-9])'; then
    row "glibc before 2.35, by its versions" "" fallbacks failed "asks for symbols that came with rseq"
else
    row "glibc before 2.35, by its versions" "" fallbacks passed "linked against $(getconf GNU_LIBC_VERSION), asks for $versions at most"
fi

fetch() {
    mkdir -p "$root/apt/lists/partial" "$root/apt/archives/partial" "$root/debs"
    : >"$root/apt/status"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian bullseye main" \
        >"$root/apt/sources.list"
    local options=(-o "Dir::Etc::sourcelist=$root/apt/sources.list" -o Dir::Etc::sourceparts=-
        -o "Dir::State::lists=$root/apt/lists" -o "Dir::State::status=$root/apt/status"
        -o "Dir::Cache::archives=$root/apt/archives" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=
        -o APT::Sandbox::User=root)
    apt-get "${options[@]}" -q update
    (cd "$root/debs" && apt-get "${options[@]}" -q download libc6 libc6-dev libgcc-s1)
    for package in "$root"/debs/*.deb; do dpkg-deb -x "$package" "$root"; done
    # Links that name a place in the whole system.
    find "$root" -type l -lname '/*' | while read -r link; do ln -sfn "$root$(readlink "$link")" "$link"; done
}
libraries=$root/lib/x86_64-linux-gnu
if [ "$target" != x86_64-unknown-linux-gnu ]; then
    row "$host" "" all skipped "the packages named here are x86-64's"
    exit
fi
if ! [ -e "$libraries/libc.so.6" ] && ! fetch >"$logs/old-glibc.log" 2>&1; then
    row "$host" "" all skipped "Debian 11's packages could not be had: $logs/old-glibc.log"
    exit
fi

objects=$root/usr/lib/x86_64-linux-gnu
link=()
for argument in "--sysroot=$root" "-B$objects" "-L$objects" "-L$libraries" "-Wl,-rpath,$libraries" \
    "-Wl,--dynamic-linker=$libraries/ld-2.31.so"; do
    link+=(-C "link-arg=$argument")
done
# Only the programs themselves are linked otherwise. They are told from others by what they ask for to be started by, and
# moved away, so that no other script takes them for its own.
programs=()
mkdir -p "$root/programs"
for suite in $suites; do
    cargo rustc --test "$suite" -- "${link[@]}"
    program=$(find target/debug/deps -maxdepth 1 -type f -executable -name "$suite-????????????????" \
        -exec sh -c 'readelf -lW "$1" | grep -q glibc-2.31' _ {} \; -printf '%T@ %p\n' | sort -n | tail -1 | cut -d' ' -f2)
    mv "$program" "$root/programs/"
    programs+=("$root/programs/$(basename "$program")")
done
run_suites "$host" "${programs[@]}"
