# What the scripts in this directory share; sourced, in the crate's directory.
#
# Every script prints lines for the table that tests/hosts.sh makes, among others that it does not look at:
#
#     ROW|host|mode|suite|result|note
#
# mode: libc_rseq, own_rseq, per_thread, or nothing; result: passed, failed, skipped, or another word with a note.

row() {
    printf '\nROW|%s|%s|%s|%s|%s\n' "$1" "$2" "$3" "$4" "${5-}"
}

# Seconds after which a suite is taken to hang.
: "${HOSTS_TIMEOUT:=580}"
logs=target/hosts
mkdir -p "$logs"

# test_programs DIRECTORY SUITE...: the newest program of each suite.
test_programs() {
    local directory=$1 suite
    shift
    for suite in "$@"; do
        find "$directory" -maxdepth 1 -type f -executable -name "$suite-????????????????" -printf '%T@ %p\n' |
            sort -n | tail -1 | cut -d' ' -f2
    done
}

# run_suites HOST PROGRAM...: runs test programs, each prefixed by the words of the array `prefix`, one row each; with
# within=yes also the rows that they print themselves, as hosts on this host. The mode is what the first of them, the suite
# `fallbacks`, says.
# With `only`, just these suites.
prefix=()
run_suites() {
    local host=$1 program suite mode log said
    shift
    mode=$("${prefix[@]}" "$1" --exact workload_as_it_is --nocapture 2>&1 | sed -n 's/^mode: //p')
    case $mode in
        LibcRseq) mode=libc_rseq ;;
        OwnRseq) mode=own_rseq ;;
        PerThread) mode=per_thread ;;
    esac
    for program in "$@"; do
        suite=$(basename "$program")
        suite=${suite%-*}
        [[ -z ${only-} || " $only " == *" $suite "* ]] || continue
        log="$logs/$(printf %s "$host-$mode-$suite" | tr -c 'a-zA-Z0-9._-' _).log"
        if timeout "$HOSTS_TIMEOUT" "${prefix[@]}" "$program" --nocapture >"$log" 2>&1; then
            row "$host" "$mode" "$suite" passed
        else
            said=$(awk '/^failures:$/ { said = ""; next } /^    [a-z_:]+$/ { said = said $1 " " } END { print said }' "$log")
            row "$host" "$mode" "$suite" failed "${said:-no result; }$log"
        fi
        [ "${within-}" != yes ] || sed -nE "s/^ROW\|([^|]*\|[^|]*\|)/ROW|$host: \1$suite::/p" "$log"
    done
}

# The suites that say nothing of a single host or C library, `fallbacks` first: it says the mode; or fewer, by SUITES.
suites="${SUITES:-fallbacks lifetimes realloc sizes model threads mempool fork conservation exhaustion invariants large_tls
    out_of_memory misuse nolock_floor nolock_steps nolock_storm nolock_syscalls rcu_fallbacks rcu_fork rcu_misuse
    rcu_torture rseq_boundaries rseq_sites surface hosts_sandbox hosts_machine hosts_rseq_rules}"

# Of these, those that neither choose modes for themselves nor are about what stacks of CPUs alone have: where the settings
# allow no rseq.
per_thread="realloc sizes model threads mempool fork exhaustion large_tls misuse nolock_steps rcu_fallbacks rcu_fork
    rcu_misuse rcu_torture surface pcpalloc"
per_thread=$(echo $per_thread)
