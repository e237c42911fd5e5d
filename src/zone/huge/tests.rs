//! What is known of what pages take, and what follows from it.

use std::time::Duration;

use super::*;

/// Controls: look for the word without its brackets; take any number for an order.
#[test]
fn what_the_system_says_is_understood() {
    assert_eq!(for_whom(b"always [madvise] never\n"), BY_ADVICE);
    assert_eq!(for_whom(b"[always] madvise never\n"), UNASKED);
    assert_eq!(for_whom(b"always madvise [never]\n") | for_whom(b""), 0);
    assert_eq!(reports_free(b"9\n") & reports_free(b"10\n"), REPORTS_FREE);
    assert_eq!(reports_free(b"4294967295\n") | reports_free(b"-1\n") | reports_free(b""), 0);
}

/// Controls: have `is_quick` compare with all of what small pages take, or with nothing known of them be false.
#[test]
fn half_of_what_small_pages_take_is_quick() {
    let costs = Costs::new();
    assert!(costs.is_quick(200_000) && !costs.is_quick(500_000));
    costs.note(false, 700_000);
    assert!(costs.is_quick(200_000) && !costs.is_quick(400_000) && !costs.is_quick(5_000_000));
}

/// Units from one look to the next.
const UNITS: u32 = LOOK_AGAIN / PARTS;

/// Runs so many units, of which each kind takes so long; returns how many were huge pages.
fn run(costs: &Costs, units: u32, small: u64, huge: u64) -> u32 {
    (0..units)
        .filter(|_| {
            let kind = costs.choose(PARTS);
            costs.note(kind, if kind { huge } else { small });
            kind
        })
        .count() as u32
}

/// The quicker kind has all but a few looks at the other, and its place when that changes.
///
/// Red if `choose` never looks again, or `note` keeps what a kind took at first.
#[test]
fn the_quicker_kind_is_taken() {
    let costs = Costs::new();
    let huge = run(&costs, 1280, 700_000, 200_000);
    assert!((1268..1280).contains(&huge), "{huge}");
    // The host has no more to give at once.
    let huge = run(&costs, 1280, 700_000, 4_000_000);
    assert!((10..20).contains(&huge), "{huge}");
    let huge = run(&costs, 1280, 700_000, 200_000);
    assert!(huge > 1280 - 2 * UNITS, "{huge}");
    assert!(costs.prefers_huge());
}

/// Small pages are not tried while huge ones are surely quick; when one was not, once, to know.
///
/// Red if `prefers_huge` wants to know in any case, or never.
#[test]
fn what_is_surely_quick_needs_no_comparison() {
    let costs = Costs::new();
    assert_eq!(run(&costs, UNITS - 1, 700_000, 200_000), UNITS - 1);
    let costs = Costs::new();
    assert_eq!(run(&costs, 10, 2_000_000, 1_900_000), 9);
    let costs = Costs::new();
    assert_eq!(run(&costs, 10, 700_000, 4_700_000), 1);
}

/// What small pages take is known by two runs before a unit is made: by the one during which the thread was not put aside.
///
/// Controls: in `note_sample`, keep the first or the last of them, or forget that it was one; leave out the pages.
#[test]
fn two_runs_show_what_small_pages_take() {
    for nanos in [[16_000, 5_000_000], [5_000_000, 16_000]] {
        let costs = Costs::new();
        for nanos in nanos {
            assert!(costs.wants_sample());
            costs.note_sample(16, nanos);
        }
        assert!(!costs.wants_sample());
        costs.note(true, 700_000);
        assert!(costs.prefers_huge());
        let costs = Costs::new();
        nanos.into_iter().for_each(|nanos| costs.note_sample(16, nanos));
        costs.note(true, 800_000);
        assert!(!costs.prefers_huge());
    }
}

/// Where small pages were quicker, and no longer are, huge ones are taken; not for one run during which the thread was put aside.
///
/// Controls: have `wants_look` be false, or look where huge pages are preferred; have `note_sample` keep the quickest of all
/// runs, or believe a later one in full.
#[test]
fn small_pages_are_looked_at_again() {
    let costs = Costs::new();
    (0..SAMPLES).for_each(|_| costs.note_sample(16, 22_000));
    costs.note(true, 5_000_000);
    let looks = |costs: &Costs| (0..2 * SAMPLE_AGAIN).filter(|_| costs.wants_look()).count();
    assert!(!costs.prefers_huge());
    assert_eq!(looks(&costs), 2);
    costs.note_sample(4, 20_000_000);
    assert!(!costs.prefers_huge());
    (0..4).for_each(|_| costs.note_sample(4, 5_500));
    assert!(costs.small.load(Ordering::Relaxed) < 1000);
    (0..2).for_each(|_| costs.note_sample(4, 100_000));
    assert!(costs.prefers_huge());
    assert_eq!(looks(&costs), 0);
}

/// A heap of 3 MiB tries a huge page, and goes on with them if they are quick; units of small pages are for larger ones.
///
/// Controls: in `least_heap`, leave out either condition.
#[test]
fn a_medium_heap_takes_huge_pages_or_none() {
    let costs = Costs::new();
    assert_eq!(costs.least_heap(HugePages::Auto), MEDIUM_HEAP);
    assert_eq!(costs.least_heap(HugePages::Never), LARGE_HEAP);
    costs.note(true, 200_000);
    assert_eq!(costs.least_heap(HugePages::Auto), MEDIUM_HEAP);
    costs.note(true, 25_000_000);
    assert_eq!(costs.least_heap(HugePages::Auto), LARGE_HEAP);
}

/// Of several threads that know nothing one tries a huge page.
///
/// Red if `choose` makes no difference where nothing is known.
#[test]
fn one_finds_out() {
    let costs = Costs::new();
    assert_eq!([costs.choose(PARTS), costs.choose(PARTS), costs.choose(PARTS)], [true, false, false]);
    costs.note(false, 700_000);
    assert!(!costs.choose(PARTS));
    costs.note(true, 200_000);
    assert_eq!([costs.choose(PARTS), costs.choose(PARTS)], [true, true]);
}

/// What a unit took is what is known of its kind afterwards; one that was refused tells nothing of it.
///
/// Controls: in `by_the_clock`, do not note it, note it as of the other kind, or before `populate`.
#[test]
fn a_unit_shows_what_its_kind_takes() {
    const LEAST: Duration = Duration::from_millis(2);
    let slowly = || {
        std::thread::sleep(LEAST);
        true
    };
    let known = |costs: &Costs| [&costs.small, &costs.huge].map(|kind| u64::from(kind.load(Ordering::Relaxed)));
    for huge in [false, true] {
        let costs = Costs::new();
        assert_eq!(by_the_clock(&costs, huge, UNIT_ORDER, || false), None);
        assert_eq!(known(&costs), [0, 0]);
        let took = by_the_clock(&costs, huge, UNIT_ORDER, slowly).expect("it was not refused");
        assert!(u128::from(took) >= LEAST.as_nanos());
        assert_eq!(known(&costs), if huge { [0, took / 1000] } else { [took / 1000, 0] });
    }
}

/// Small pages come by parts of a unit, or as many as a run has, and a look at huge ones after as many of them as of units.
///
/// Controls: in `order_due`, have every order be a unit's; in `by_the_clock`, leave the order out of account.
#[test]
fn small_pages_come_by_parts() {
    let costs = Costs::new();
    assert_eq!(costs.order_due(1), UNIT_ORDER);
    costs.note(true, 4_000_000);
    assert!(by_the_clock(&costs, false, PART_ORDER, || true).is_some_and(|took| took % u64::from(PARTS) == 0));
    costs.small.store(700, Ordering::Relaxed);
    let orders = [1, 64, 65, 128, 300, 511].map(|pages| costs.order_due(pages));
    assert_eq!(orders, [PART_ORDER, PART_ORDER, 7, 7, UNIT_ORDER, UNIT_ORDER]);
    let is_huge = |_: &u32| {
        let order = costs.order_due(1);
        costs.choose(1 << (order - PART_ORDER)) && order == UNIT_ORDER
    };
    assert_eq!((0..2 * LOOK_AGAIN).filter(is_huge).count(), 2);
    costs.note(true, 200_000);
    assert_eq!(costs.order_due(1), UNIT_ORDER);
}

/// A system that was short of memory for a moment is asked again.
///
/// Controls: have `spares` count nothing down, `by_the_clock` not note the refusal, or `note_refusal` leave `parts` as it is.
#[test]
fn a_refusal_is_not_for_good() {
    let costs = Costs::new();
    assert!(!costs.spares() && costs.choose(PARTS));
    assert_eq!(by_the_clock(&costs, true, UNIT_ORDER, || false), None);
    assert!((0..REFUSED_FOR).all(|_| costs.spares()));
    assert!(!costs.spares() && costs.choose(PARTS));
}

/// One unit that was held up changes nothing; huge pages that take a little longer are still taken.
#[test]
fn a_preemption_does_not_decide() {
    let costs = Costs::new();
    run(&costs, 200, 700_000, 200_000);
    costs.note(true, 3_000_000);
    assert!(costs.prefers_huge());
    let costs = Costs::new();
    assert!(run(&costs, 100, 700_000, 900_000) > 90);
    costs.note(true, u64::MAX);
    costs.note(false, 0);
    run(&costs, 1000, 1, 1);
}
