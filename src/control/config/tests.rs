//! Of settings and how they are read.

use super::*;

#[test]
fn sizes_are_read() {
    assert_eq!(size(b"0"), Some(0));
    assert_eq!(size(b"64"), Some(64));
    assert_eq!(size(b"512k"), Some(512 << 10));
    assert_eq!(size(b"64M"), Some(64 << 20));
    assert_eq!(size(b"2g"), Some(2 << 30));
    for wrong in [&b""[..], b"k", b"1kb", b"-1", b"1.5g", b"99999999999999999999", b"99999999999g"] {
        assert_eq!(size(wrong), None, "{wrong:?}");
    }
}

#[test]
fn the_environment_overrides_setting_by_setting() {
    let mut config = Config::new().limit(1 << 20);
    config.override_by(c"limit:2g,high:64m,thp:never,worker:off,low:8m,cgroup:/a:b,pressure:on", |_| unreachable!());
    assert_eq!(config.limit, Some(2 << 30));
    assert_eq!(config.watermarks, Watermarks { min: 0, low: 8 << 20, high: 64 << 20 });
    assert_eq!((config.thp, config.worker), (HugePages::Never, false));
    assert_eq!((config.cgroup, config.pressure), (Cgroup::At(b"/a:b"), true));
}

#[test]
fn what_cannot_be_is_left_out_and_the_rest_is_taken() {
    let mut config = Config::new();
    let mut problems = 0;
    let conf = c"limit:lots,limit:0,limit:4095k,speed:high,high:1m,,thp,worker:off,cgroup:here,pressure";
    config.override_by(conf, |_| problems += 1);
    assert_eq!(problems, 7);
    assert_eq!(config.limit, None);
    assert_eq!(config.watermarks, Watermarks { min: 0, low: 0, high: 1 << 20 });
    assert_eq!((config.thp, config.worker), (HugePages::Auto, false));
    assert_eq!((config.cgroup, config.pressure), (Cgroup::Off, false));
}

/// Red if the value of a setting without one is taken for empty.
#[test]
fn what_is_no_setting_is_told_what_one_is() {
    let (mut config, mut lines) = (Config::new(), Vec::new());
    let conf = c"limit=2g, thp:never ,stats, high:3m";
    config.override_by(conf, |line| lines.push(String::from_utf8(line.as_bytes().to_vec()).unwrap()));
    let left_out = |setting| format!("pcpalloc: PCPALLOC_CONF: \"{setting}\" is left out: a setting is name:value\n");
    assert_eq!(lines, [left_out("limit=2g"), left_out("stats")]);
    assert_eq!(config, Config::new().thp(HugePages::Never).watermarks(Watermarks { min: 0, low: 0, high: 3 << 20 }));
}

/// However long a setting is, the line says what is wrong with it, and ends.
///
/// Red if the setting is shown in full.
#[test]
fn a_long_setting_leaves_room_for_the_problem() {
    let mut lines = Vec::new();
    let conf = c"cgruop:/sys/fs/cgroup/system.slice/a-service-with-a-name.service,üüüüüüüüüüüüüüü_ü:";
    Config::new().override_by(conf, |line| lines.push(String::from_utf8(line.as_bytes().to_vec()).unwrap()));
    assert_eq!(lines.len(), 2);
    assert!(lines[0].contains("\"cgruop:/sys/fs/cgroup/system.sli...\" is left out: "), "{lines:?}");
    assert!(lines.iter().all(|line| line.ends_with(" process_madvise\n")), "{lines:?}");
}

#[test]
fn marks_that_contradict_are_left_out_in_either_order() {
    let marks = |min, low, high| Watermarks { min, low, high };
    let none = marks(0, 0, 0);
    for (before, conf, after, left_out) in [
        (none, c"high:4m,low:8m", none, 2),
        (none, c"low:8m,high:4m", none, 2),
        (none, c"low:8m,high:0", none, 2),
        (none, c"min:2m,high:1m,thp:never", none, 2),
        (none, c"high:64m,min:9m,low:8m", marks(0, 0, 64 << 20), 2),
        (none, c"min:1m,high:4m,low:8m", marks(1 << 20, 0, 0), 2),
        // By itself it says how far, too.
        (none, c"low:8m", marks(0, 8 << 20, 8 << 20), 0),
        (none, c"min:9m,low:8m", none, 2),
        (none, c"low:8m,high:lots", marks(0, 8 << 20, 8 << 20), 1),
        // The last of a name counts.
        (none, c"high:4m,low:8m,high:16m", marks(0, 8 << 20, 16 << 20), 0),
        // With what the static says.
        (marks(0, 1 << 20, 4 << 20), c"low:8m", marks(0, 1 << 20, 4 << 20), 1),
        (marks(0, 1 << 20, 4 << 20), c"high:512k", marks(0, 1 << 20, 4 << 20), 1),
        (marks(0, 1 << 20, 4 << 20), c"high:8m,low:8m", marks(0, 8 << 20, 8 << 20), 0),
        (marks(0, 8 << 20, 16 << 20), c"min:12m,low:14m,high:13m", marks(0, 8 << 20, 16 << 20), 3),
    ] {
        let (mut config, mut lines) = (Config::new().watermarks(before), 0);
        config.override_by(conf, |_| lines += 1);
        assert_eq!((config.watermarks, lines), (after, left_out), "{conf:?} over {before:?}");
    }
}

#[test]
fn a_sandbox_is_spared_by_the_environment() {
    let mut config = Config::new();
    config.override_by(c"rseq:libc,membarrier:off", |_| unreachable!());
    assert_eq!(config, Config::new().rseq(Rseq::Libc).membarrier(false));
    config.override_by(c"rseq:off,membarrier:on", |_| unreachable!());
    assert_eq!(config, Config::new().rseq(Rseq::Off));
    let mut problems = 0;
    config.override_by(c"rseq:on,membarrier:auto,rseq", |_| problems += 1);
    assert_eq!((config, problems), (Config::new().rseq(Rseq::Off), 3));
}

#[test]
fn shards_are_set_by_the_environment() {
    let mut config = Config::new();
    for (conf, shards) in [(c"shards:cpu", Shards::Cpu), (c"shards:one", Shards::One), (c"shards:auto", Shards::Auto)] {
        config.override_by(conf, |_| unreachable!());
        assert_eq!(config, Config::new().shards(shards));
    }
    let mut problems = 0;
    config.override_by(c"shards:2", |_| problems += 1);
    assert_eq!((config, problems), (Config::new(), 1));
}

#[test]
fn protections_are_read() {
    let mut config = Config::new();
    config.override_by(c"hardened:random+guard,guard:1/5000", |_| unreachable!());
    assert_eq!(config, Config::new().hardened(Hardening::RANDOM | Hardening::GUARD).guarded_sampling(5000));
    let mut problems = 0;
    let conf = c"hardened:zero+poison,hardened,guard:2/3,guard:1/0,guard:1/+5,guard:5000,guard:1/,guard:1/5000000000";
    config.override_by(conf, |_| problems += 1);
    assert_eq!(problems, 8);
    config.override_by(c"hardened:1,guard:off", |_| unreachable!());
    assert_eq!(config, Config::new().hardened(Hardening::ALL));
}
