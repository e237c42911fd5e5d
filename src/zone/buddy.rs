//! A binary buddy allocator over page numbers.
//!
//! Free memory is kept as blocks of `1 << order` pages aligned to their size, in one pair of lists per
//! order: *warm* blocks have memory behind some page, *cold* ones behind none. A block taken is split in
//! halves until it is small enough; a block given back is merged with its buddy, the block whose number
//! differs in just the bit of its size, for as long as that one is free and whole. (D. Knuth, The Art of
//! Computer Programming 1, §2.5; the kernel's `mm/page_alloc.c`.)
//!
//! ```text
//! take(order):   find the smallest free block of at least `order`, warm ones first, of its list the lowest in memory
//!                while it is larger: halve it, put one half back
//! give(block):   while its buddy is free and of the same order: unlink the buddy, double the block
//!                put it on its list
//! ```
//!
//! Requests need not be powers of two: [`Buddy::alloc`] takes the block that covers the request and gives
//! the pages behind it back, or puts the request together from neighbours that are no buddies. Lists alone would have runs
//! of odd lengths lie wherever the last one was freed, and what is free between them serve nobody: so of what there is the
//! lowest in memory is taken, and a run begins at the first page that is free in front of its block, as first fit would have
//! it (Knuth, ibid.), as far as a bounded number of looks goes. Of large runs of one length that come back whole, one after
//! the other, the last few are parked for the next requests of that length, and merged when anybody needs them otherwise.
//! Everything here is arithmetic on the tables of [`Pages`]; no system call is made, and the caller holds the lock.

use core::ops::Range;

#[cfg(feature = "debug")]
use super::pages::TAG_GUARD;
use super::pages::{Pages, TAG_FREE, TAG_NONE, TAG_RUN, TAG_WARM};
use super::parked::Parked;

/// log2 of the pages in the largest block: 4 MiB.
pub(crate) const MAX_ORDER: u32 = 10;
/// Number of orders.
pub(crate) const ORDERS: usize = MAX_ORDER as usize + 1;

const NONE: u32 = u32::MAX;

/// The free blocks of one order and warmth.
#[derive(Clone, Copy)]
struct FreeList {
    head: u32,
    blocks: u32,
}

pub(crate) struct Buddy {
    pages: Pages,
    cold: [FreeList; ORDERS],
    warm: [FreeList; ORDERS],
    /// Page numbers from here on are not ours yet.
    end: u32,
    /// Pages that are ours.
    added: u32,
    free: u32,
    free_warm: u32,
    /// The least that `free_warm` has been since it was last asked for.
    least_warm: u32,
    /// Free runs that are on no list.
    parked: Parked,
    /// Warm pages that are left for last.
    pub(crate) reserve: u32,
}

/// What pages are taken for, which decides how they are tagged.
#[derive(Clone, Copy)]
pub(crate) enum Purpose {
    /// Blocks of a class side by side: every page carries the class's tag.
    Slab(u8),
    /// One block of a class: its first page carries the tag, and its descriptor the length.
    Block(u8),
    /// One block larger than any class, tagged like the last.
    Large,
}

/// Pages taken from a [`Buddy`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    pub page: u32,
    /// How many of them have memory behind them; the others read as zero.
    pub warm: u32,
}

impl Buddy {
    /// A buddy allocator that has no pages; [`Buddy::add`] gives it some.
    pub(crate) const fn new(pages: Pages) -> Self {
        let empty = [FreeList { head: NONE, blocks: 0 }; ORDERS];
        Buddy {
            pages,
            cold: empty,
            warm: empty,
            end: 0,
            added: 0,
            free: 0,
            free_warm: 0,
            least_warm: 0,
            parked: Parked::new(),
            reserve: 0,
        }
    }

    /// Free pages.
    pub(crate) fn free_pages(&self) -> u32 {
        self.free
    }

    /// Pages that are ours, free or not.
    pub(crate) fn added_pages(&self) -> u32 {
        self.added
    }

    /// Pages handed out, or free and warm.
    pub(crate) fn resident_pages(&self) -> u32 {
        self.added - (self.free - self.free_warm)
    }

    /// Free pages with memory behind them.
    pub(crate) fn free_warm_pages(&self) -> u32 {
        self.free_warm
    }

    /// Free pages that have had memory behind them and no use since this was last asked.
    pub(crate) fn take_least_warm(&mut self) -> u32 {
        core::mem::replace(&mut self.least_warm, self.free_warm)
    }

    /// Whether all that is free and warm has been so since the least was last asked for.
    pub(crate) fn is_still(&self) -> bool {
        self.least_warm == self.free_warm
    }

    /// Free blocks of an order.
    pub(crate) fn free_blocks(&self, order: usize) -> u32 {
        self.cold[order].blocks + self.warm[order].blocks
    }

    /// Bit n is set if a block of order n is free, or lies in a parked run.
    pub(crate) fn orders(&self) -> u32 {
        let listed = (0..ORDERS).filter(|&o| self.free_blocks(o) > 0).fold(0, |mask, o| mask | 1 << o);
        listed | self.parked.orders()
    }

    /// Adds pages never used so far. They follow all pages added before, or leave a gap.
    pub(crate) fn add(&mut self, pages: Range<u32>) {
        debug_assert!(self.end <= pages.start);
        self.end = pages.end;
        self.added += pages.end - pages.start;
        self.free += pages.end - pages.start;
        self.give_range(pages);
    }

    /// Takes `count` pages that start at a multiple of `1 << align`.
    pub(crate) fn alloc(&mut self, count: u32, align: u32, purpose: Purpose) -> Option<Taken> {
        let order = align.max(count.next_power_of_two().trailing_zeros());
        let parked = if self.spares_warm() { None } else { self.parked.take(count, align) };
        let page = match parked {
            Some(page) => page,
            // It is small, and aligned to its size most often, so there is no better place to look for.
            None if matches!(purpose, Purpose::Slab(_)) => self.take_first(count, order)?,
            None => self.take_warmest(count, order, align)?,
        };
        let end = page + count;
        match purpose {
            Purpose::Slab(tag) => self.pages.set_tags(page..end, tag),
            _ => self.tag_run(page, count, purpose),
        }
        let warm = self.pages.warm_in(page..end);
        self.free -= count;
        self.free_warm -= warm;
        self.least_warm = self.least_warm.min(self.free_warm);
        Some(Taken { page, warm })
    }

    /// Gives pages back, of which the first `touched` have been written to since they were taken.
    pub(crate) fn free(&mut self, pages: Range<u32>, touched: u32) {
        self.free_with_holes(pages, touched, 0);
    }

    /// The same with pages that have lost their memory since: those that bit n of `holes` stands for.
    pub(crate) fn free_with_holes(&mut self, pages: Range<u32>, touched: u32, holes: u32) {
        self.pages.set_warm(pages.start..pages.start + touched);
        let mut rest = holes;
        while rest != 0 {
            let hole = pages.start + rest.trailing_zeros();
            self.pages.set_cold(hole..hole + 1);
            rest &= rest - 1;
        }
        // The pages of a slab have tags; inside a run of one block there are none.
        if self.pages.tag(pages.end - 1) != TAG_NONE {
            self.pages.set_tags(pages.clone(), TAG_NONE);
        } else {
            self.pages.set_tag(pages.start, TAG_NONE);
        }
        let (count, warm) = (pages.end - pages.start, self.pages.warm_in(pages.clone()));
        self.free += count;
        self.free_warm += warm;
        if !Parked::admits(count, warm) {
            return self.give_range(pages);
        }
        if !self.parked.comes_again(count) {
            self.unpark();
            return self.give_range(pages);
        }
        if let Some(older) = self.parked.put(pages) {
            self.give_range(older);
        }
    }

    /// Puts parked runs on the lists, merged with what is free around them; whether there were any.
    pub(crate) fn unpark(&mut self) -> bool {
        let mut any = false;
        while let Some(run) = self.parked.pop() {
            self.give_range(run);
            any = true;
        }
        any
    }

    /// Makes a run of one block longer where it lies, if the pages behind it are free. Says how many of the new pages have memory behind them.
    pub(crate) fn extend(&mut self, run: Range<u32>, new_end: u32) -> Option<u32> {
        self.unpark();
        // The page behind a run that is not ours starts whatever follows, so free space there is a chain
        // of whole blocks.
        let mut end = run.end;
        while end < new_end {
            if end >= self.end || self.pages.tag(end) & TAG_FREE == 0 {
                return None;
            }
            end += 1 << self.order_at(end);
        }
        let mut page = run.end;
        while page < end {
            let order = self.order_at(page);
            self.unlink(page, order);
            page += 1 << order;
        }
        self.give_range(new_end..end);
        let warm = self.pages.warm_in(run.end..new_end);
        self.free -= new_end - run.end;
        self.free_warm -= warm;
        self.least_warm = self.least_warm.min(self.free_warm);
        Some(warm)
    }

    /// The length of a run, as its descriptor has it.
    pub(crate) fn run_length(&mut self, page: u32) -> u32 {
        self.pages.descriptor(page).pages
    }

    /// Notes that a run, taken just now, is fresh: [`filled`](super::filled) wants to know when it is freed.
    pub(crate) fn set_fresh(&mut self, page: u32) {
        self.pages.descriptor(page).next = 1;
    }

    /// Whether a run was noted as fresh, and its length has not changed since.
    pub(crate) fn is_fresh(&mut self, page: u32) -> bool {
        self.pages.descriptor(page).next != 0
    }

    /// Tags a run of one block and notes its length.
    pub(crate) fn tag_run(&mut self, page: u32, pages: u32, purpose: Purpose) {
        let tag = match purpose {
            Purpose::Slab(tag) | Purpose::Block(tag) => tag,
            Purpose::Large => TAG_RUN,
        };
        self.pages.set_tag(page, tag);
        let descriptor = self.pages.descriptor(page);
        (descriptor.pages, descriptor.next) = (pages, 0);
    }

    pub(crate) fn pages(&mut self) -> &mut Pages {
        &mut self.pages
    }

    /// Takes a cold free block out, to be given memory; the caller returns it with [`Buddy::free`]. The largest of at
    /// most `1 << most` pages, or else the smallest of more: splitting it would leave a block that is warm in part.
    pub(crate) fn take_cold(&mut self, most: u32) -> Option<Range<u32>> {
        let smaller = (0..=most as usize).rev();
        let order = smaller.chain(most as usize + 1..ORDERS).find(|&o| self.cold[o].head != NONE)? as u32;
        let page = self.cold[order as usize].head;
        self.unlink(page, order);
        self.free -= 1 << order;
        Some(page..page + (1 << order))
    }

    /// Takes `1 << order` cold pages out, out of the smallest block that is large enough, to be given memory; the caller
    /// returns them with [`Buddy::free`].
    pub(crate) fn take_cold_unit(&mut self, order: u32) -> Option<Range<u32>> {
        let found = (order..ORDERS as u32).find(|&order| self.cold[order as usize].head != NONE)?;
        let page = self.cold[found as usize].head;
        let page = self.split(page, found, 1 << order, order);
        self.free -= 1 << order;
        Some(page..page + (1 << order))
    }

    /// As [`Buddy::take_cold_unit`], but those from `page` on, a multiple of `1 << order`, if all of them are free and cold.
    pub(crate) fn take_cold_at(&mut self, page: u32, order: u32) -> Option<Range<u32>> {
        let unit = page..page + (1 << order);
        if unit.end > self.end || self.pages.warm_in(unit.clone()) > 0 {
            return None;
        }
        let around = |order: u32| (page >> order << order, order);
        let is_free = |&(start, order): &(u32, u32)| self.pages.tag(start) & !TAG_WARM == TAG_FREE | order as u8;
        let (mut start, found) = (order..ORDERS as u32).map(around).find(is_free)?;
        self.unlink(start, found);
        for half in (order..found).rev() {
            let middle = start + (1 << half);
            let (kept, other) = if page < middle { (start, middle) } else { (middle, start) };
            let warm = self.pages.warm_in(other..other + (1 << half)) > 0;
            self.link(other, half, warm);
            start = kept;
        }
        self.free -= 1 << order;
        Some(unit)
    }

    /// Takes a free block out of which some pages have memory behind them and some have not, to be given it in full;
    /// the caller returns it with [`Buddy::free`]. Looks at the first few of each order, the larger ones first. Says
    /// how many of its pages are warm.
    pub(crate) fn take_partly_warm(&mut self) -> Option<(Range<u32>, u32)> {
        const LOOKS: usize = 16;
        for order in (0..ORDERS as u32).rev() {
            let mut page = self.warm[order as usize].head;
            for _ in 0..LOOKS {
                if page == NONE {
                    break;
                }
                let block = page..page + (1 << order);
                let warm = self.pages.warm_in(block.clone());
                if warm < 1 << order {
                    self.unlink(page, order);
                    self.free -= 1 << order;
                    self.free_warm -= warm;
                    return Some((block, warm));
                }
                page = self.pages.descriptor(page).next;
            }
        }
        None
    }

    /// Takes a warm free block out for its memory to be given back, the largest in front of its list of which at
    /// most `pages` have memory behind them, and none smaller than `1 << least`. The caller returns it with
    /// [`Buddy::return_cold`]. Says how many of its pages are warm.
    pub(crate) fn take_warm(&mut self, least: u32, pages: u32) -> Option<(Range<u32>, u32)> {
        self.unpark();
        for order in (least as usize..ORDERS).rev() {
            let page = self.warm[order].head;
            if page == NONE {
                continue;
            }
            let block = page..page + (1 << order);
            let warm = self.pages.warm_in(block.clone());
            if warm <= pages {
                self.unlink(page, order as u32);
                self.free -= 1 << order;
                self.free_warm -= warm;
                // What has gone cold was not free all the while.
                self.least_warm = self.least_warm.min(self.free_warm);
                return Some((block, warm));
            }
        }
        None
    }

    /// Puts back a block that [`Buddy::take_warm`] took; it has no memory any more if `cold`.
    pub(crate) fn return_cold(&mut self, block: Range<u32>, cold: bool) {
        if cold {
            self.pages.set_cold(block.clone());
        }
        self.free(block, 0);
    }

    /// Whether there is no more warm memory than what is left for last.
    fn spares_warm(&self) -> bool {
        self.free_warm < self.reserve
    }

    fn order_at(&self, page: u32) -> u32 {
        (self.pages.tag(page) & 0x1f) as u32
    }

    fn list(&mut self, order: u32, warm: bool) -> &mut FreeList {
        if warm { &mut self.warm[order as usize] } else { &mut self.cold[order as usize] }
    }

    /// Gives back any range as the largest aligned blocks that make it up.
    fn give_range(&mut self, pages: Range<u32>) {
        let mut page = pages.start;
        while page < pages.end {
            let aligned = if page == 0 { MAX_ORDER } else { page.trailing_zeros() };
            let order = aligned.min((pages.end - page).ilog2()).min(MAX_ORDER);
            self.give(page, order);
            page += 1 << order;
        }
    }

    /// Gives back one block, merged with its free buddies.
    fn give(&mut self, mut page: u32, mut order: u32) {
        let mut warm = self.pages.warm_in(page..page + (1 << order)) > 0;
        while order < MAX_ORDER {
            let buddy = page ^ (1 << order);
            if buddy + (1 << order) > self.end {
                break;
            }
            let tag = self.pages.tag(buddy);
            if tag & !TAG_WARM != TAG_FREE | order as u8 {
                break;
            }
            self.unlink(buddy, order);
            warm |= tag & TAG_WARM != 0;
            page &= buddy;
            order += 1;
        }
        self.link(page, order, warm);
    }

    fn link(&mut self, page: u32, order: u32, warm: bool) {
        let list = self.list(order, warm);
        let next = core::mem::replace(&mut list.head, page);
        list.blocks += 1;
        let descriptor = self.pages.descriptor(page);
        descriptor.next = next;
        descriptor.prev = NONE;
        if next != NONE {
            self.pages.descriptor(next).prev = page;
        }
        self.pages.set_tag(page, TAG_FREE | if warm { TAG_WARM } else { 0 } | order as u8);
    }

    fn unlink(&mut self, page: u32, order: u32) {
        let warm = self.pages.tag(page) & TAG_WARM != 0;
        self.pages.set_tag(page, TAG_NONE);
        let (next, prev) = (self.pages.descriptor(page).next, self.pages.descriptor(page).prev);
        if next != NONE {
            self.pages.descriptor(next).prev = prev;
        }
        if prev != NONE {
            self.pages.descriptor(prev).next = next;
        }
        let list = self.list(order, warm);
        list.blocks -= 1;
        if prev == NONE {
            list.head = next;
        }
    }

    /// Whether lists, tags and counters agree, and what does not; costs a walk over all pages. Pages start at `first`.
    #[cfg(any(test, feature = "debug"))]
    pub(crate) fn check(&mut self, first: u32) -> Result<(), &'static str> {
        let sure = |fact: bool, what: &'static str| if fact { Ok(()) } else { Err(what) };
        let (mut free, mut free_warm) = (0, 0);
        let mut blocks = [[0u32; 2]; ORDERS];
        let mut page = first;
        while page < self.end {
            let tag = self.pages.tag(page);
            if let Some(run) = self.parked.starting_at(page) {
                let whole = self.pages.warm_in(run.clone()) == run.end - run.start;
                sure(tag == TAG_NONE && whole, "a parked run carries no tag and is warm")?;
                free += run.end - run.start;
                free_warm += run.end - run.start;
                page = run.end;
                continue;
            }
            if tag & TAG_FREE == 0 {
                page += 1;
                continue;
            }
            let order = self.order_at(page);
            sure(order <= MAX_ORDER && page + (1 << order) <= self.end, "a free block ends before its zone does")?;
            let warm = self.pages.warm_in(page..page + (1 << order));
            sure(page.is_multiple_of(1 << order), "a free block is aligned to its size")?;
            sure((warm > 0) == (tag & TAG_WARM != 0), "a block is warm if a page of it is")?;
            let buddy = page ^ (1 << order);
            let apart = order == MAX_ORDER
                || buddy < first
                || buddy + (1 << order) > self.end
                || self.pages.tag(buddy) & !TAG_WARM != TAG_FREE | order as u8;
            sure(apart, "free buddies are merged")?;
            let inside = page + 1..page + (1 << order);
            sure(inside.into_iter().all(|inner| self.pages.tag(inner) & TAG_FREE == 0), "a free block has one head")?;
            blocks[order as usize][(warm > 0) as usize] += 1;
            free += 1 << order;
            free_warm += warm;
            page += 1 << order;
        }
        sure((free, free_warm) == (self.free, self.free_warm), "free pages are as many as counted")?;
        sure(self.least_warm <= self.free_warm, "the least that was free is not more than is free")?;
        for (order, counted) in blocks.iter().enumerate() {
            for (warm, list) in [&self.cold[order], &self.warm[order]].into_iter().enumerate() {
                sure(list.blocks == counted[warm], "a list is as long as counted")?;
            }
            for warm in [false, true] {
                self.check_list(order as u32, warm)?;
            }
        }
        Ok(())
    }

    /// Whether a list's links lead to and fro, through blocks that belong on it.
    #[cfg(any(test, feature = "debug"))]
    fn check_list(&mut self, order: u32, warm: bool) -> Result<(), &'static str> {
        let FreeList { head, blocks } = *self.list(order, warm);
        let (mut page, mut previous) = (head, NONE);
        for _ in 0..blocks {
            let tag = TAG_FREE | if warm { TAG_WARM } else { 0 } | order as u8;
            if page >= self.end || self.pages.tag(page) != tag {
                return Err("a list leads to blocks of its order and warmth");
            }
            if self.pages.descriptor(page).prev != previous {
                return Err("a list leads back where it came from");
            }
            (previous, page) = (page, self.pages.descriptor(page).next);
        }
        if page == NONE { Ok(()) } else { Err("a list ends where it should") }
    }

    /// Pages by what they are held for: those of slabs by class, of runs that are a block of a class by class, and of
    /// larger runs. What does not add up to the pages that are not free is an error.
    #[cfg(feature = "debug")]
    pub(crate) fn held(&mut self, first: u32, mut each: impl FnMut(u8, u32)) -> Result<(), &'static str> {
        let (mut page, mut held) = (first, 0);
        while page < self.end {
            let tag = self.pages.tag(page);
            let pages = if tag & TAG_FREE != 0 {
                1 << self.order_at(page)
            } else {
                // A slab has its tag on every page, and a guard page is by itself.
                let slab = tag == TAG_GUARD
                    || tag != TAG_RUN && tag != TAG_NONE && !crate::size_class::is_run_class(tag as usize - 1);
                let pages = if tag == TAG_NONE || slab { 1 } else { self.pages.descriptor(page).pages };
                if tag != TAG_NONE {
                    each(tag, pages);
                    held += pages;
                }
                pages
            };
            page += pages.max(1);
        }
        if held == self.added - self.free { Ok(()) } else { Err("what is not free is held for something") }
    }
}

mod search;
#[cfg(test)]
mod tests;
