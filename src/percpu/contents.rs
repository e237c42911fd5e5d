//! What lies on the stacks of a region: how much, and whether headers and book agree about it.

use core::sync::atomic::Ordering;

#[cfg(feature = "debug")]
use super::region::FLOOR;
use super::region::{RESERVE, Region, Reserve, Stack, WORD};
use crate::size_class::{CLASS, CLASSES, block_size};

impl Region {
    /// How many blocks a stack holds, exactly if it is not in use meanwhile.
    pub(super) fn count(&self, stack: &Stack, class: usize) -> usize {
        let top = self.headers[class].top.load(Ordering::Relaxed) as usize;
        // A stack in use may be seen while it moves to its large array.
        let room = if stack.large { CLASS[class].capacity_max } else { CLASS[class].capacity };
        let entries = (top.saturating_sub(stack.base as usize) / WORD).min(room as usize);
        entries - self.marks(stack.base, entries)
    }

    /// Blocks in a reserve.
    pub(super) fn reserve_count(&self, reserve: &Reserve, class: usize) -> usize {
        if reserve.base.is_null() {
            return 0;
        }
        let top = self.headers[RESERVE + class].top.load(Ordering::Relaxed) as usize;
        (top.saturating_sub(reserve.base as usize) / WORD).min(reserve.charge)
    }

    /// Blocks that a reserve lacks.
    pub(super) fn reserve_lacks(&self, reserve: &Reserve, class: usize) -> usize {
        reserve.charge - self.reserve_count(reserve, class)
    }

    /// A number that changes when any stack does, most likely.
    pub(super) fn fingerprint(&self) -> usize {
        let tops = self.headers[..CLASSES].iter().map(|header| header.top.load(Ordering::Relaxed) as usize);
        let events = [&self.counters.refills, &self.counters.flushes].map(|n| n.load(Ordering::Relaxed));
        tops.chain(events).fold(0, |sum, part| sum.rotate_left(5) ^ part.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// Blocks in all ordinary stacks, and how many there is room for.
    pub(crate) fn blocks(&self) -> (usize, usize) {
        let book = self.book.lock();
        let count = (0..CLASSES).map(|class| self.count(&book.stacks[class], class)).sum();
        (count, book.stacks.iter().map(|stack| stack.capacity as usize).sum())
    }

    /// Blocks of a class, the reserve's included.
    pub(crate) fn blocks_of(&self, class: usize) -> usize {
        let book = self.book.lock();
        self.count(&book.stacks[class], class) + self.reserve_count(&book.reserves[class], class)
    }

    /// Bytes in the stacks that a drain would empty.
    pub(super) fn cached_now_ordinary(&self) -> usize {
        let book = self.book.lock();
        (0..CLASSES).map(|class| self.count(&book.stacks[class], class) * block_size(class)).sum()
    }

    /// Bytes in the stacks of a region that others use meanwhile.
    pub(crate) fn cached_now(&self) -> usize {
        let book = self.book.lock();
        let blocks = |class| self.count(&book.stacks[class], class) + self.reserve_count(&book.reserves[class], class);
        (0..CLASSES).map(|class| blocks(class) * block_size(class)).sum()
    }
}

#[cfg(feature = "debug")]
impl Region {
    /// Whether headers and book agree; calls `each` with the class and address of every block on a stack or in a
    /// reserve. Nobody operates on the stacks meanwhile.
    pub(crate) fn check(&self, mut each: impl FnMut(usize, usize)) -> Result<(), &'static str> {
        let book = self.book.lock();
        let mut charged = 0;
        for (class, fixed) in CLASS.iter().enumerate() {
            let stack = &book.stacks[class];
            let room = if stack.large { fixed.capacity_max } else { fixed.capacity } as usize;
            charged += stack.capacity as usize * block_size(class);
            let header = &self.headers[class];
            let limit = self.headers[FLOOR + class].limit.load(Ordering::Relaxed);
            let shown = header.limit.load(Ordering::Relaxed);
            if shown != if self.is_diverted(&book, class) { core::ptr::null_mut() } else { limit } {
                return Err("a push sees a stack's limit, or none while pushes are diverted");
            }
            if stack.capacity as usize > room || limit != stack.base.wrapping_add(stack.capacity as usize) {
                return Err("a stack's limit is its capacity, which its array has room for");
            }
            let (top, marks) = (header.top.load(Ordering::Relaxed), super::observed::has_marks());
            Self::check_array(stack.base, top, room, marks, |block| each(class, block))?;
            let reserve = &book.reserves[class];
            let header = &self.headers[RESERVE + class];
            if !reserve.base.is_null() {
                if reserve.charge > reserve.room {
                    return Err("a reserve has room for what is charged");
                }
                let top = header.top.load(Ordering::Relaxed);
                Self::check_array(reserve.base, top, reserve.charge, false, |block| each(class, block))?;
            }
        }
        if charged != book.charged || charged > book.budget {
            return Err("a region's stacks have the capacity that is charged, within its budget");
        }
        Ok(())
    }

    fn check_array(
        base: *mut usize,
        top: *mut usize,
        room: usize,
        marks: bool,
        mut each: impl FnMut(usize),
    ) -> Result<(), &'static str> {
        let len = (top as usize).wrapping_sub(base as usize) / WORD;
        if len > room || !(top as usize - base as usize).is_multiple_of(WORD) {
            return Err("a stack's top is in its array");
        }
        // SAFETY: the array is the region's, or a reserve's, and holds so many entries behind its sentinel.
        let words = unsafe { core::slice::from_raw_parts(base.sub(1), len + 1) };
        match words.split_first() {
            Some((0, entries)) if entries.starts_with(&[0]) || entries.windows(2).any(|pair| pair == [0, 0]) => {
                return Err("a mark lies on a block");
            }
            Some((0, entries)) if marks || !entries.contains(&0) => {
                entries.iter().filter(|&&entry| entry != 0).for_each(|&entry| each(entry));
            }
            _ => return Err("a stack has a 0 in front of its entries and none among them"),
        }
        Ok(())
    }
}
