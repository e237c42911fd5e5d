# Guests for the scripts in this directory: a Debian kernel, an initramfs with test programs in it, and QEMU; sourced, in
# the crate's directory. Kernels and C libraries are downloaded by apt into target/hosts/guests, and nothing of them is
# installed.
#
# Every script prints lines `ROW|host|mode|suite|result|note`; mode: libc_rseq, own_rseq, per_thread.

guests=$PWD/target/hosts/guests
mkdir -p "$guests/logs"
: "${GUEST_SECONDS:=3000}"
# On a busy machine, how many times as long a suite may take before it is taken to hang.
: "${GUEST_PATIENCE:=1}"
: "${PCPALLOC_TEST_SCALE:=0.05}"

guest_row() {
    printf 'ROW|%s|%s|%s|%s|%s\n' "$1" "$2" "$3" "$4" "${5-}"
}

# --keep-logs DIRECTORY: what the guests print goes there, a file for each.
guest_options() {
    while [ $# -gt 0 ]; do
        case $1 in
            --keep-logs) guest_logs=$(mkdir -p "$2" && cd "$2" && pwd) && shift 2 ;;
            *) echo "usage: $0 [--keep-logs DIRECTORY]" >&2 && exit 2 ;;
        esac
    done
}
guest_logs=$guests/logs

guest_install() {
    local missing
    missing=$(for package in "$@"; do dpkg -s "$package" >/dev/null 2>&1 || echo "$package"; done)
    [ -z "$missing" ] || { echo "installing:" $missing >&2 && apt-get update -q >&2 &&
        DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $missing >&2; }
}

# guest_apt SUITE ARCHITECTURE TOOL ARGUMENT...: apt-get or apt-cache as if that were all there is.
guest_apt() {
    local root=$guests/apt-$1-$2 tool=$3
    if [ ! -f "$root/sources.list" ]; then
        mkdir -p "$root/lists/partial" "$root/archives/partial"
        : >"$root/status"
        echo "deb [arch=$2 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian $1 main" \
            >"$root/sources.list.new"
    fi
    local options=(-q -o "Dir::Etc::sourcelist=$root/sources.list" -o Dir::Etc::sourceparts=-
        -o "Dir::State::lists=$root/lists" -o "Dir::State::status=$root/status" -o "Dir::Cache::archives=$root/archives"
        -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o "APT::Architecture=$2" -o "APT::Architectures::=$2"
        -o APT::Sandbox::User=root)
    if [ -f "$root/sources.list.new" ]; then
        mv "$root/sources.list.new" "$root/sources.list"
        apt-get "${options[@]}" update >&2 || { rm "$root/sources.list"; return 1; }
    fi
    shift 3
    "$tool" "${options[@]}" "$@"
}

# guest_unpack SUITE ARCHITECTURE PACKAGE: the directory in which the package is unpacked.
guest_unpack() {
    local directory=$guests/packages-$1-$2/$3
    if [ ! -d "$directory" ]; then
        mkdir -p "$directory.new"
        (cd "$directory.new" && guest_apt "$1" "$2" apt-get download "$3" >&2) || return 1
        dpkg-deb -x "$directory.new"/*.deb "$directory.new" && rm "$directory.new"/*.deb
        mv "$directory.new" "$directory"
    fi
    echo "$directory"
}

# guest_kernel SUITE ARCHITECTURE FLAVOUR: the kernel's file, uncompressed as far as QEMU wants it to be.
guest_kernel() {
    local package binary directory
    package=$(guest_apt "$1" "$2" apt-cache depends "linux-image-$3" | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p')
    [ -n "$package" ] || return 1
    # Later releases have the file in a package apart, earlier ones in one that is not signed.
    binary=$(guest_apt "$1" "$2" apt-cache depends "$package" | sed -n 's/.*Depends: \(linux-binary-[0-9].*\)/\1/p')
    directory=$(guest_unpack "$1" "$2" "${binary:-$package}") || return 1
    find "$directory" -name 'vmlinuz*' | head -1
}

# guest_initramfs FILE ARCHITECTURE SUITE PLAN PROGRAM...: busybox and the C library of a Debian release, the programs,
# and the plan: lines of shell that call `suite`.
guest_initramfs() {
    local file=$1 architecture=$2 release=$3 plan=$4 root program name
    shift 4
    root=$file.d
    rm -rf "$root" && mkdir -p "$root"/{bin,proc,sys,dev,tmp,tests}
    for package in libc6 libgcc-s1; do
        name=$(guest_unpack "$release" "$architecture" "$package") || return 1
        (cd "$name" && find . \( -name 'ld-linux*' -o -name 'libc.so*' -o -name 'libm.so*' -o -name 'libgcc_s*' \
            -o -name 'libdl.so*' -o -name 'libpthread.so*' -o -name 'librt.so*' \) -print) |
            while read -r name2; do
                mkdir -p "$root/lib" "$root/lib64"
                cp -L "$name/$name2" "$root/lib/"
                case $name2 in *ld-linux-x86*) cp -L "$name/$name2" "$root/lib64/" ;; esac
            done
    done
    name=$(guest_unpack bookworm "$architecture" busybox-static) || return 1
    cp "$(find "$name" -path '*/bin/busybox')" "$root/bin/busybox"
    for program in "$@"; do
        name=$(basename "$program")
        cp "$program" "$root/tests/${name%-*}"
        "${guest_strip:-strip}" --strip-debug "$root/tests/${name%-*}"
    done
    printf '%s\n' "patience=$GUEST_PATIENCE" "$plan" >"$root/plan"
    cat >"$root/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin LD_LIBRARY_PATH=/lib HOME=/tmp
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm && mount -t tmpfs tmp /dev/shm && mount -t tmpfs tmp /tmp
dmesg -n 1
echo; echo "GUEST|$(uname -r)|$(uname -m)|$(grep -c ^processor /proc/cpuinfo) CPUs|$(cat /sys/devices/system/cpu/possible) possible|$(ls -d /sys/devices/system/node/node* 2>/dev/null | wc -l) nodes"
# suite SECONDS PROGRAM ARGUMENT...
suite() {
    limit=$(($1 * patience)) name=$2
    shift 2
    timeout -s KILL "$limit" "/tests/$name" "$@" --nocapture >/tmp/log 2>&1
    code=$?
    said=$(grep -a '^test result' /tmp/log | tail -1 | cut -d. -f2- | cut -d';' -f1-2)
    mode=$(sed -n 's/^mode: //p' /tmp/log | head -1)
    [ -z "$mode" ] || echo "MODE|$mode"
    if [ $code = 0 ]; then
        echo "SUITE|$name|passed|$said"
        grep -aE "${SHOW:-^$}" /tmp/log
    else
        echo "SUITE|$name|failed|status $code;$said"
        tail -n 60 /tmp/log
    fi
}
. /plan
echo "GUEST|done"
sync
poweroff -f
INIT
    chmod +x "$root/init"
    (cd "$root" && find . | cpio -o -H newc --quiet | gzip -1) >"$file"
}

# guest_rows HOST LOG: the table's lines from what a guest printed.
guest_rows() {
    local host=$1 log=$2 mode=- kind a b c
    while IFS='|' read -r kind a b c; do
        case $kind in
            MODE) case $a in LibcRseq) mode=libc_rseq ;; OwnRseq) mode=own_rseq ;; PerThread) mode=per_thread ;; esac ;;
            SUITE) guest_row "$host" "$mode" "$a" "$b" "$c" ;;
        esac
    done < <(tr -d '\r' <"$log" | grep -aE '^(MODE|SUITE)\|')
    grep -aq '^GUEST|done' "$log" || guest_row "$host" "$mode" boot failed "did not come to its end: $log"
}

# guest_boot NAME QEMU ARGUMENT...: boots, and prints where the log is.
guest_boot() {
    local log=$guest_logs/$1.log
    shift
    timeout $((GUEST_SECONDS * GUEST_PATIENCE)) "$@" -nographic -nic none -no-reboot -serial "file:$log" -monitor none </dev/null >/dev/null 2>&1 || true
    echo "$log"
}
