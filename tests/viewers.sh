#!/usr/bin/env bash
# The files of the profiler, and of the dhat crate under this heap, in the programs that people read them with:
#
#   pprof           Google's, as Go has it: `go tool pprof` (Debian's golang-go), or the one that $PPROF names
#   dh_view.html    valgrind's viewer, in a browser without a window (Debian's valgrind and chromium)
#
# What is missing is installed from Debian where that is allowed (as root), and said; what cannot be had is skipped, and
# said. On request: `bash tests/viewers.sh [DIRECTORY]`. The files, what the viewers made of them and their pictures stay in
# the directory (target/viewers).
#
# Controls, in every run: a file that ends early is refused by pprof; a point that lacks a field, by the viewer.
# google-pprof of gperftools is another program, which reads its own format only.
set -euo pipefail
cd "$(dirname "$0")/.."
directory=${1:-target/viewers}
mkdir -p "$directory"
directory=$(cd "$directory" && pwd)

passed=0 skipped=0
ok() { passed=$((passed + 1)); echo "viewers: $*"; }
skip() { skipped=$((skipped + 1)); echo "viewers: skipped: $*"; }
fail() { echo "viewers: $*" >&2; exit 1; }

# have PROGRAM PACKAGE: whether the program is there, by now.
have() {
    command -v "$1" >/dev/null 2>&1 && return
    if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null 2>&1; then
        echo "viewers: installing $2, for $1"
        apt-get install -y --no-install-recommends "$2" >"$directory/install.log" 2>&1 || true
    fi
    command -v "$1" >/dev/null 2>&1
}

# near WHAT SEEN SAID: the two differ by no more than one in a hundred.
near() {
    awk -v a="$2" -v b="$3" 'BEGIN { exit !(a > 0 && b > 0 && (a > b ? a - b : b - a) <= b / 100) }' ||
        fail "$1: the viewer shows $2 bytes, the program said $3"
}

# --- the files -------------------------------------------------------------------------------------------------

said=$directory/said.txt
cargo run --features profile --example profile -- "$directory" >"$said"
# kib NAME: what the program said of a view, in bytes.
kib() { awk -v name="$1" '$1 == name { print $2 * 1024 }' "$said"; }

# --- pprof -----------------------------------------------------------------------------------------------------

pprof=()
if [ -n "${PPROF:-}" ]; then
    pprof=("$PPROF")
elif have go golang-go && go tool -n pprof >/dev/null 2>&1; then
    pprof=(go tool pprof)
fi
if [ ${#pprof[@]} -eq 0 ]; then
    skip "pprof: Go is not to be had here, nor named by PPROF"
else
    file=$directory/profile.pb.gz
    # Columns: flat, flat%, sum%, cum, cum%, name. By cumulated bytes, so that what main calls is on it.
    top() { # view, file
        "${pprof[@]}" -top -cum -nodecount=10000 -nodefraction=0 -unit=B "-sample_index=$1" "$2"
    }
    for view in inuse:live peak:peak alloc:allocated; do
        top "${view%:*}_space" "$file" >"$directory/pprof-${view%:*}.txt" 2>"$directory/pprof.log" || fail "$(cat "$directory/pprof.log")"
        total=$(sed -n 's/.*Total samples *= *\([0-9.]*\)B.*/\1/p' "$directory/pprof-${view%:*}.txt")
        [ -n "$total" ] || fail "pprof shows no total: $(head -6 "$directory/pprof-${view%:*}.txt")"
        near "pprof, ${view%:*}_space" "$total" "$(kib "${view#*:}")"
    done
    for function in 'profile::main' 'profile::CrossReference::merge' '<profile::Visitor as syn::gen::visit::Visit>::visit_ident'; do
        grep -qF "$function" "$directory/pprof-inuse.txt" || fail "pprof does not show $function among what is in use"
    done
    for function in 'profile::read_file' 'syn::parse_file'; do
        grep -qF "$function" "$directory/pprof-alloc.txt" || fail "pprof does not show $function among what was allocated"
    done
    # Names are whole: pprof takes the brackets out of what it believes to be C++.
    if grep -E '% +::' "$directory/pprof-inuse.txt" "$directory/pprof-alloc.txt"; then fail "pprof has cut names"; fi
    ok "pprof -top: three views with the bytes that the program said, and its functions by their whole names"

    "${pprof[@]}" -raw "$file" >"$directory/pprof-raw.txt" 2>"$directory/pprof.log" || fail "$(cat "$directory/pprof.log")"
    types='alloc_objects/count alloc_space/bytes inuse_objects/count inuse_space/bytes\[dflt\] deferred_objects/count deferred_space/bytes peak_objects/count peak_space/bytes'
    grep -qx "PeriodType: space bytes" "$directory/pprof-raw.txt" && grep -qx "Period: 65536" "$directory/pprof-raw.txt" &&
        grep -qx "$types" "$directory/pprof-raw.txt" && grep -q 'bytes:\[' "$directory/pprof-raw.txt" || fail "pprof -raw: $(head -20 "$directory/pprof-raw.txt")"
    grep -q "^[0-9]*: 0x.*/examples/profile .*\[FN\]" "$directory/pprof-raw.txt" || fail "pprof -raw: no mapping of the program with functions"
    ok "pprof -raw: $(grep -c 'bytes:\[' "$directory/pprof-raw.txt") samples, $(sed -n '/^Locations$/,/^Mappings$/p' "$directory/pprof-raw.txt" | grep -c ' M=') locations, types, period, mappings"

    "${pprof[@]}" -top "-diff_base=$file" "$file" >"$directory/pprof-diff.txt" 2>&1 || fail "$(cat "$directory/pprof-diff.txt")"
    grep -q "accounting for 0" "$directory/pprof-diff.txt" || fail "pprof finds a file different from itself: $(cat "$directory/pprof-diff.txt")"
    head -c 20000 "$file" >"$directory/cut.pb.gz"
    if "${pprof[@]}" -top "$directory/cut.pb.gz" >/dev/null 2>&1; then fail "pprof takes a file that ends early: it looks at nothing"; fi
    ok "pprof -diff_base; a file that ends early is refused"
fi

# --- dh_view.html ----------------------------------------------------------------------------------------------

viewer=
for at in /usr/libexec/valgrind /usr/lib/valgrind /usr/lib/x86_64-linux-gnu/valgrind /usr/local/libexec/valgrind; do
    if have valgrind valgrind && [ -f "$at/dh_view.html" ]; then viewer=$at; fi
done
browser=$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)
[ -n "$browser" ] || ! have chromium chromium || browser=chromium

# in_viewer NAME JSON [METRIC]: loads a file as a person does, by the page's own input, and sorts by the metric; its page is NAME.dom, the text of it NAME.txt,
# its picture NAME.png.
in_viewer() {
    local page=$directory/dh_view
    mkdir -p "$page"
    cp "$viewer"/dh_view.{html,css,js} "$page/"
    cp "$2" "$page/$1.json"
    cat >"$page/load.js" <<'SCRIPT'
addEventListener("load", () => {
  const name = location.pathname.split("/").pop().replace(".html", ".json");
  const request = new XMLHttpRequest();
  request.open("GET", name);
  request.onload = () => {
    const select = document.querySelector("select"), metric = decodeURIComponent(location.hash.slice(1));
    const option = [...select.options].find((option) => option.text === metric);
    if (option) select.value = option.value;
    const input = document.querySelector("input[type=file]"), files = new DataTransfer();
    files.items.add(new File([request.responseText], name));
    input.files = files.files;
    input.dispatchEvent(new Event("change"));
  };
  request.send();
});
SCRIPT
    sed 's#</body>#<script src="load.js"></script></body>#' "$page/dh_view.html" >"$page/$1.html"
    local what
    for what in --dump-dom "--screenshot=$directory/$1.png"; do
        timeout 120 "$browser" --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking \
            --disable-component-update --disable-sync --user-data-dir="$directory/browser" --allow-file-access-from-files \
            --virtual-time-budget=20000 --window-size=1600,1100 "$what" "file://$page/$1.html#${3:-}" 2>"$directory/browser.log"
    done >"$directory/$1.dom"
    sed 's/<[^>]*>//g; s/&lt;/</g; s/&gt;/>/g; s/&amp;/\&/g' "$directory/$1.dom" >"$directory/$1.txt"
    [ -s "$directory/$1.png" ] || fail "the browser made no picture: $(tail -3 "$directory/browser.log")"
}
# shows NAME TEXT: whether the page shows it.
shows() { grep -qF -- "$2" "$directory/$1.txt"; }
# bytes NAME LINE: the bytes that the tree's root has on a line of its own.
bytes() { sed -n "/PP 1\/1 /,\$ { s/.*$2 *\([0-9,]*\) bytes.*/\1/; T; s/,//gp; q }" "$directory/$1.txt"; }

if [ -z "$viewer" ] || [ -z "$browser" ]; then
    skip "dh_view.html: ${viewer:-valgrind is not to be had here} ${browser:-chromium is not to be had here}"
else
    in_viewer ours "$directory/dhat.json"
    in_viewer ours-at-end "$directory/dhat.json" "At t-end (bytes)"
    shows ours "Mode:    rust-heap" && shows ours "PP 1/1 (" || fail "the viewer shows no tree of ours: $directory/ours.txt"
    # Below one in a hundred of what it sorts by, the viewer leaves sites out.
    for function in 'profile::read_file' 'syn::parse_file'; do
        shows ours "$function" || fail "the viewer does not show $function"
    done
    shows ours-at-end 'profile::CrossReference::merge' || fail "the viewer does not show profile::CrossReference::merge at the end"
    near "dh_view, Total" "$(bytes ours Total:)" "$(kib allocated)"
    near "dh_view, At t-gmax" "$(bytes ours 'At t-gmax:')" "$(kib peak)"
    near "dh_view, At t-end" "$(bytes ours 'At t-end:')" "$(kib live)"
    ok "dh_view.html: our file, $(grep -c 'PP 1[0-9./]* ' "$directory/ours.txt") points, with the bytes that the program said"

    # The same program twice, counted by dhat: with this heap below it, and with the C library's.
    for features in "--features capi" ""; do
        name=dhat${features:+-capi}
        # shellcheck disable=SC2086
        cargo run $features --example dhat -- "$directory/$name.json" >"$directory/$name.log" 2>&1 || fail "$(cat "$directory/$name.log")"
        in_viewer "$name" "$directory/$name.json"
        shows "$name" "PP 1/1 (" && shows "$name" "dhat::count_words" && shows "$name" "Mode:    rust-heap" || fail "the viewer shows no tree of $name: $directory/$name.txt"
    done
    [ "$(bytes dhat Total:)" = "$(bytes dhat-capi Total:)" ] || fail "dhat counts other bytes over this heap: $(bytes dhat-capi Total:), and $(bytes dhat Total:) over C's"
    ok "dh_view.html: dhat's file of examples/dhat, $(bytes dhat Total:) bytes whichever heap serves it"

    sed '0,/"mbk":/ s/"mbk":/"nothing":/' "$directory/dhat.json" >"$directory/broken.json"
    in_viewer broken "$directory/broken.json"
    if shows broken "PP 1/1 ("; then fail "the viewer takes a point without its blocks: it looks at nothing"; fi
    ok "dh_view.html: a point that lacks a field is refused"
fi
echo "viewers: $passed passed, $skipped skipped; the pictures are in $directory"
