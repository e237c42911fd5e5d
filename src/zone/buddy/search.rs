//! Where a run is taken from: what is warm and low in memory, by a bounded number of looks.

use core::ops::Range;

use super::{Buddy, MAX_ORDER, NONE, ORDERS};
use crate::zone::huge::UNIT_ORDER;
use crate::zone::pages::{TAG_FREE, TAG_WARM};

/// Blocks of a list that are looked at for one that suits best.
const LOOKS: usize = 16;

/// A block on a list of warm ones, and how many of the pages asked for are.
struct Warmest {
    page: u32,
    order: u32,
    warm: u32,
}

impl Buddy {
    /// Takes `count` pages, warm ones if they can be had: a page that has no memory costs a fault, which is more than
    /// dozens of looks at blocks, and adds to what is resident.
    ///
    /// ```text
    /// of the blocks that are warm as far as they are needed, and the stretches of neighbours that are: the lowest
    /// else whatever of these is warm most, and else a cold block: from the first page on that is free in front of it
    /// ```
    pub(super) fn take_warmest(&mut self, count: u32, order: u32, align: u32) -> Option<u32> {
        if self.free_warm == 0 || self.spares_warm() {
            return self.take_low(count, order, align);
        }
        let mut best = self.warmest(count, order);
        // What is parked is warm, and may be large enough or a neighbour.
        if best.warm < count && self.unpark() {
            best = self.warmest(count, order);
        }
        let more = if best.warm == count { count - 1 } else { best.warm };
        if let Some((around, start)) = self.across(count, order, align, more)
            && (best.warm < count || start < best.page)
        {
            return Some(self.cut(around.start, start, count));
        }
        if best.warm == 0 {
            return self.take_low(count, order, align);
        }
        if best.warm < count {
            let (first, start) = self.free_from(best.page, count, align);
            if start < best.page && self.pages.warm_in(start..start + count) >= best.warm {
                return Some(self.cut(first, start, count));
            }
        }
        Some(self.split(best.page, best.order, count, order))
    }

    /// Takes `count` pages from `start` on out of free blocks side by side, of which the first is at `first`.
    fn cut(&mut self, first: u32, start: u32, count: u32) -> u32 {
        let mut end = first;
        while end < start + count {
            let order = self.order_at(end);
            self.unlink(end, order);
            end += 1 << order;
        }
        self.give_range(first..start);
        self.give_range(start + count..end);
        start
    }

    /// As [`Buddy::take_first`], but from the first page on that is free in front of that block: else what is left over
    /// behind each run of an odd length would serve no large one, and the heap reach a tenth farther.
    fn take_low(&mut self, count: u32, order: u32, align: u32) -> Option<u32> {
        let (page, found) = self.first_block(count, order)?;
        let (first, start) = self.free_from(page, count, align);
        if start >= page {
            return Some(self.split(page, found, count, order));
        }
        Some(self.cut(first, start, count))
    }

    /// The free blocks side by side in front of the one at `page`, as far as `count` pages need them: where the first of
    /// them begins, and the first page there that is aligned. Runs as large as a huge page stay where they may be one, and warm
    /// blocks that are left for last are passed over.
    fn free_from(&self, page: u32, count: u32, align: u32) -> (u32, u32) {
        let mut first = page;
        while count < 1 << UNIT_ORDER
            && page - first < count
            && let Some((before, warm)) = self.free_before(first)
            && !(warm && self.spares_warm())
        {
            first = before;
        }
        (first, first.next_multiple_of(1 << align))
    }

    /// Where the free block begins that ends at `end`, if there is one, and whether it is warm.
    fn free_before(&self, end: u32) -> Option<(u32, bool)> {
        // It is aligned to its size, so its end is, too.
        (0..=end.trailing_zeros().min(MAX_ORDER)).find_map(|order| {
            let start = end.checked_sub(1 << order)?;
            let tag = self.pages.tag(start);
            (tag & !TAG_WARM == TAG_FREE | order as u8).then_some((start, tag & TAG_WARM != 0))
        })
    }

    /// The first block of at least `order`: cold, if what is warm is left for last.
    pub(super) fn take_first(&mut self, count: u32, order: u32) -> Option<u32> {
        let (page, found) = self.first_block(count, order)?;
        Some(self.split(page, found, count, order))
    }

    /// That block, and its order.
    fn first_block(&mut self, count: u32, order: u32) -> Option<(u32, u32)> {
        let warm_first = !self.spares_warm();
        let mut found = self.lowest(count, order, warm_first);
        // Where what is warm is left for last, too: whoever asks knows that there is a run, parked or not.
        if found.is_none() && self.unpark() {
            found = self.lowest(count, order, warm_first);
        }
        found.or_else(|| self.lowest(count, order, !warm_first))
    }

    /// Of the first few blocks of the smallest order that is large enough and has any, the lowest. Of warm ones, the lowest
    /// of those whose first `count` pages are, if an order has one.
    fn lowest(&mut self, count: u32, order: u32, warm: bool) -> Option<(u32, u32)> {
        let mut found = None;
        for order in order..ORDERS as u32 {
            let mut page = self.list(order, warm).head;
            let (mut lowest, mut whole) = (NONE, NONE);
            for _ in 0..LOOKS {
                if page == NONE {
                    break;
                }
                lowest = lowest.min(page);
                if !warm || page < whole && self.pages.warm_in(page..page + count) == count {
                    whole = whole.min(page);
                }
                page = self.pages.descriptor(page).next;
            }
            if whole != NONE {
                return Some((whole, order));
            }
            if lowest != NONE {
                found = found.or(Some((lowest, order)));
            }
        }
        found
    }

    /// Takes a free block out, and gives back what of it is not needed.
    pub(super) fn split(&mut self, mut page: u32, found: u32, count: u32, order: u32) -> u32 {
        self.unlink(page, found);
        for half in (order..found).rev() {
            let (low, high) = (page, page + (1 << half));
            // Keep the lower half, unless only the upper one has memory behind it.
            let low_warm = self.pages.warm_in(low..high) > 0;
            let high_warm = self.pages.warm_in(high..high + (1 << half)) > 0;
            let (keep, other, other_warm) =
                if high_warm && !low_warm { (high, low, low_warm) } else { (low, high, high_warm) };
            self.link(other, half, other_warm);
            page = keep;
        }
        self.give_range(page + count..page + (1 << order));
        page
    }

    /// Of the first few warm blocks of each order that is large enough, the one whose first `count` pages are warm most.
    fn warmest(&mut self, count: u32, order: u32) -> Warmest {
        let mut best = Warmest { page: NONE, order, warm: 0 };
        for order in order..ORDERS as u32 {
            let mut page = self.warm[order as usize].head;
            for _ in 0..LOOKS {
                if page == NONE {
                    break;
                }
                let warm = self.pages.warm_in(page..page + count);
                if warm > best.warm || best.page == NONE || warm == best.warm && page < best.page {
                    // A block that is warm elsewhere is still better than a cold one.
                    best = Warmest { page, order, warm: warm.max(1) };
                }
                page = self.pages.descriptor(page).next;
            }
        }
        best
    }

    /// Free neighbours that together have `count` pages, more than `least` of them warm, and where these start: two that
    /// are neighbours but no buddies are never merged, and without this, runs of odd lengths that come and go would have
    /// ever more memory lie free. Looks at what is around the first few warm blocks of half and a quarter of the size: a
    /// stretch of `count` pages has one of these in it.
    fn across(&mut self, count: u32, order: u32, align: u32, mut least: u32) -> Option<(Range<u32>, u32)> {
        if align == order || count < 3 {
            return None;
        }
        let mut best = None;
        for half in (order.saturating_sub(2)..order).rev() {
            let mut page = self.warm[half as usize].head;
            for _ in 0..LOOKS {
                if page == NONE {
                    break;
                }
                let around = self.warm_around(page, count);
                let start = around.start.next_multiple_of(1 << align);
                if start + count <= around.end {
                    let warm = self.pages.warm_in(start..start + count);
                    if warm > least || warm == least && best.as_ref().is_some_and(|b: &(Range<u32>, u32)| start < b.1) {
                        (best, least) = (Some((around, start)), warm);
                    }
                }
                page = self.pages.descriptor(page).next;
            }
        }
        best
    }

    /// The warm blocks side by side around the one at `page`, until there are `enough` pages. (Large cold ones are left
    /// whole.)
    fn warm_around(&self, page: u32, enough: u32) -> Range<u32> {
        let mut around = page..page + (1 << self.order_at(page));
        while around.end - around.start < enough
            && let Some((start, true)) = self.free_before(around.start)
        {
            around.start = start;
        }
        while around.end - around.start < enough && around.end < self.end && self.pages.tag(around.end) & TAG_FREE != 0
        {
            around.end += 1 << self.order_at(around.end);
        }
        around
    }
}
