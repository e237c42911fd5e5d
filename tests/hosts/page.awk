# A section of docs/hosts.md from the results of one script: a line `RUN|name|date|commit|minutes|settings`, then rows as
# tests/hosts/common.sh has them. `about` is what the script says of itself.
#
# Hosts as such, on which suites ran, make one table, in the order of the rows. Hosts that a test makes for itself, by
# filters, mount namespaces, limits or the C library's tunables, make another: by suite, test and trouble.
BEGIN { FS = "|" }

$1 == "RUN" {
    printf "\n## %s\n\n%s\n\n`tests/hosts/%s.sh`, %s, on %s, %s minute%s", $2, about, $2, $3, $4, $5, $5 == 1 ? "" : "s"
    sub(/ *$/, "", $6)
    print $6 == "" ? "." : ", not all of it: `" $6 "`."
    next
}

$1 == "ROW" && $4 ~ /::/ {
    # Words between colons after the host's own name are the trouble.
    trouble = $2
    sub(/^[^:]*: /, "", trouble)
    said = $5 == "passed" ? "" : $5 ($6 != "" ? ": " : "")
    within[++inner] = "| `" $4 "` | " trouble " | " mode($3) " | " said $6 " |"
    next
}

$1 == "ROW" {
    key = $2 FS $3
    if (!(key in known)) { known[key] = 1; keys[++hosts] = key }
    if ($5 == "passed") {
        if (!((key, $4) in passed)) { passed[key, $4] = 1; count[key]++; list[key] = list[key] (list[key] ? ", " : "") "`" $4 "`" }
        if (!($4 in suites)) { suites[$4] = 1; total++; names = names (names ? ", " : "") "`" $4 "`"; suite[total] = $4 }
        if ($6 != "") note[key] = $6
    } else {
        if (!($4 in suites) && $4 != "all" && $4 != "boot") { suites[$4] = 1; total++; names = names (names ? ", " : "") "`" $4 "`"; suite[total] = $4 }
        others[key] = others[key] (others[key] ? "; " : "") ($4 == "all" ? "" : "`" $4 "` ") $5 ($6 != "" ? ": " $6 : "")
    }
}

function mode(name) { return name == "" ? "" : "`" name "`" }

function said_of(key,    i, missing, absent) {
    if (count[key] == total) return "all"
    # All but those that failed; or, where others were not run, by name.
    if (others[key] == "" || count[key] * 2 < total || total < 8) return list[key]
    for (i = 1; i <= total; i++) if (!((key, suite[i]) in passed)) { missing = missing (absent++ ? ", " : "") "`" suite[i] "`" }
    return "all but " missing
}

END {
    if (total > 1) printf "\nSuites: %s.\n", names
    print "\n| host | mode | suites that passed | others |\n| --- | --- | --- | --- |"
    for (i = 1; i <= hosts; i++) {
        key = keys[i]
        split(key, part, FS)
        both = others[key] && note[key] ? "; " : ""
        printf "| %s | %s | %s | %s |\n", part[1], mode(part[2]), said_of(key), others[key] both note[key]
    }
    if (!inner) exit
    print "\nHosts within it, which tests make for themselves by filters of system calls, mount namespaces, limits, or the C"
    print "library's tunables:"
    print "\n| test | host | mode | why, or what else came of it |\n| --- | --- | --- | --- |"
    # Few: an exchange sort, since not every awk has one.
    for (i = 2; i <= inner; i++) {
        line = within[i]
        for (j = i - 1; j >= 1 && within[j] > line; j--) within[j + 1] = within[j]
        within[j + 1] = line
    }
    for (i = 1; i <= inner; i++) print within[i]
}
