//! What runs come from, and units.

use super::*;

/// While one thread gives memory to a unit no other does, nor has a child of a fork to wait for a thread that it does not have.
///
/// Controls: have `begin_unit` always be the first, or its guard leave the flag; leave it in `fork_lock`.
#[test]
fn one_unit_at_a_time() {
    let node = Node::new();
    let first = node.begin_unit();
    assert!(first.is_some() && node.begin_unit().is_none());
    drop(first);
    let second = node.begin_unit();
    assert!(second.is_some());
    core::mem::forget(second);
    node.fork_lock(true);
    node.fork_lock(false);
    assert!(node.begin_unit().is_some());
}

/// A zone of its own, whose first pages up to a unit's border are in use, and that border; `None` where memory is not given by calls.
fn zone_up_to_a_unit() -> Option<(&'static Zone, u32)> {
    let zone = Zone::reserve(0, 0).expect("there is address space");
    let take = || zone.alloc(1, 0, Purpose::Large).expect("there are pages").page;
    let first = take();
    if !zone.populate_run(first, 1) {
        eprintln!("not tested: this system does not give memory by calls");
        return None;
    }
    let border = first.next_multiple_of(UNIT);
    (first + 1..border).for_each(|page| assert_eq!(take(), page));
    Some((zone, border))
}

const UNIT: u32 = 1 << huge::UNIT_ORDER;

/// A run that lies across the border of a unit has memory in full when that has, and goes on lying there.
///
/// Controls: in `take_unit`, take any unit; in `take_cold_at`, only what no warm page is merged with.
#[test]
fn a_unit_goes_on_from_what_is_warm() {
    let Some((zone, border)) = zone_up_to_a_unit() else { return };
    assert!(zone.enlarge() && zone.enlarge());
    let end = (zone.committed_bytes() >> PAGE_SHIFT) as u32;
    let used = zone.alloc(UNIT, huge::UNIT_ORDER, Purpose::Large).expect("one is there at first");
    assert_eq!((used.page, end), (border, border + 5 * UNIT));
    // Its last pages and the four units after it are free.
    let mut border = border + UNIT;
    zone.free(border - 2, 2, 2);
    for _ in 0..2 {
        zone.populate_unit(border - 2..border + 2, huge::UNIT_ORDER);
        let warm = zone.with_buddy(|buddy| buddy.pages().warm_in(border - 2..end));
        let beside = zone.with_buddy(|buddy| buddy.pages().warm_in(border - 2..border + UNIT));
        assert_eq!([warm, beside], [UNIT + 2; 2]);
        border += UNIT;
    }
    // So does a part.
    for _ in 0..2 {
        zone.populate_unit(border - 2..border + 2, huge::UNIT_ORDER - 3);
        assert_eq!(zone.with_buddy(|buddy| buddy.pages().warm_in(border - 2..end)), UNIT / 8 + 2);
        border += UNIT / 8;
    }
}

/// A unit that is in use in part stays as it is while others can be had, by making the zone larger, too; but not where much
/// lies cold.
///
/// Controls: in `take_unit`, do not make it larger; or do so whatever lies cold.
#[test]
fn what_is_left_of_a_unit_stays_cold() {
    let Some((zone, border)) = zone_up_to_a_unit() else { return };
    let committed = || (zone.committed_bytes() >> PAGE_SHIFT) as u32;
    let warm = |pages: Range<u32>| zone.with_buddy(|buddy| buddy.pages().warm_in(pages));
    let use_some = |unit: u32| assert!(zone.with_buddy(|buddy| buddy.take_cold_at(unit, 1)).is_some());
    let had = committed();
    assert_eq!(had, border + UNIT, "one unit is there at first");
    use_some(border);
    assert_eq!(zone.populate_unit(border + 2..border + 6, huge::UNIT_ORDER), (UNIT as usize) << PAGE_SHIFT);
    assert_eq!((committed(), warm(border..had)), (had + 2 * UNIT, 0));
    assert_eq!(warm(had..had + UNIT) + warm(had + UNIT..had + 2 * UNIT), UNIT);
    // The other one that has come to be there.
    use_some(if warm(had..had + UNIT) > 0 { had + UNIT } else { had });
    assert_eq!(zone.populate_unit(border + 2..border + 6, huge::UNIT_ORDER), 0);
    assert_eq!((committed(), warm(border..committed())), (had + 2 * UNIT, UNIT));
}

/// What a heap of 16 MiB and more takes meanwhile is cold, and of a unit afterwards. (Other tests may free warm memory.) What
/// small pages take is known by then.
///
/// Red if `alloc` does not ask `begin_unit`, if that is never the first, or if `alloc` takes no samples.
#[test]
fn whoever_comes_meanwhile_gets_cold_memory() {
    const PAGES: u32 = 64;
    let node = &nodes()[0];
    let take = |runs: usize| -> Vec<Run> {
        let run = || node.alloc(PAGES, 0, Purpose::Large, |_, _| false).expect("there is memory");
        (0..runs).map(|_| run()).collect()
    };
    let of_units = |runs: &[Run]| runs.iter().filter(|run| run.warm == PAGES).count();
    let mut all = take(64 << 20 >> PAGE_SHIFT >> 6);
    assert!(!huge::wants_sample() || !huge::is_due(PAGES));
    let another = (0..1_000_000).find_map(|_| node.begin_unit());
    assert!(another.is_some(), "no unit takes so long");
    // What is left of the last unit, and some more.
    all.extend(take(16));
    let meanwhile = take(32);
    drop(another);
    all.extend(take(16));
    let afterwards = take(32);
    let seen = (of_units(&meanwhile), of_units(&afterwards));
    for run in all.into_iter().chain(meanwhile).chain(afterwards) {
        run.zone.free(run.page, PAGES, 0);
    }
    assert!(seen.0 < 16, "{seen:?}");
    assert!(seen.1 > 16 || !huge::is_due(PAGES), "{seen:?}");
}
