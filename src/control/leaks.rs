//! What is still in use, by size class: on demand, or against a mark.

use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::deferred::{Deferred, settle};
use super::drain::{Drain, drain};
use crate::size_class::{CLASSES, PAGE, block_size, class_of};
use crate::slab::counts_on;
use crate::zone::{mapping, mapping_cache, nodes};
use crate::{heap, percpu, sys};

/// Classes, then runs larger than any class, then mappings.
const ROWS: usize = CLASSES + 2;
const RUNS: usize = CLASSES;
const MAPPINGS: usize = CLASSES + 1;

/// What was in use at the mark: a number of blocks, or for the last two rows of bytes. Relaxed throughout: statistics.
static MARK: [AtomicUsize; ROWS] = [const { AtomicUsize::new(0) }; ROWS];
static MARKED: AtomicBool = AtomicBool::new(false);

/// What the program has in use, by size class; what is deferred by [`rcu`](crate::rcu) is not part of it.
///
/// Counted, not traced: a block that the program still has a use for is in here like one that it has forgotten, and so are,
/// while another thread gets a block, those up to 255 of its class that it takes along for its CPU's stack. After
/// [`PcpAlloc::leak_mark`](crate::PcpAlloc::leak_mark) it is what each class has more in use than at the mark. As text, a
/// line for everything, and one for each class.
#[derive(Clone, Copy, Debug)]
pub struct Leaks {
    /// As in [`MARK`].
    rows: [usize; ROWS],
    marked: bool,
    deferred: Deferred,
}

/// A line of [`Leaks`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeakedBlocks {
    /// Bytes in each block, where it has a size class. (Else it is a run of pages up to 4 MiB, or a mapping.)
    pub size: Option<usize>,
    /// How many there are, where they have a class.
    pub blocks: Option<usize>,
    /// Bytes of all of them.
    pub bytes: usize,
}

impl Leaks {
    /// Has deferred frees done first, and empties the stacks.
    pub(crate) fn now() -> Leaks {
        let mut leaks =
            Leaks { rows: [0; ROWS], marked: MARKED.load(Ordering::Relaxed), deferred: Deferred::default() };
        if !heap::is_up() {
            return leaks;
        }
        leaks.deferred = settle(true);
        drain(Drain::All);
        leaks.rows = rows(leaks.deferred.pages);
        for (row, mark) in leaks.rows.iter_mut().zip(&MARK) {
            *row = row.saturating_sub(mark.load(Ordering::Relaxed));
        }
        leaks
    }

    /// What is in use now counts as there from the start.
    pub(crate) fn mark() {
        if !heap::is_up() {
            return;
        }
        let deferred = settle(true);
        drain(Drain::All);
        for (mark, now) in MARK.iter().zip(rows(deferred.pages)) {
            mark.store(now, Ordering::Relaxed);
        }
        MARKED.store(true, Ordering::Relaxed);
    }

    /// Bytes of everything.
    pub fn bytes(&self) -> usize {
        self.lines().map(|line| line.bytes).sum()
    }

    /// Bytes that wait for a grace period although it was tried to have them freed: a reader is still reading. They are in
    /// the other figures, too, since nothing says of which class they are.
    pub fn deferred_bytes(&self) -> usize {
        self.deferred.bytes
    }

    /// What is in use of each class that has any, the smallest first, then of runs, then of mappings.
    pub fn lines(&self) -> impl Iterator<Item = LeakedBlocks> + '_ {
        self.rows.iter().enumerate().filter(|&(_, &count)| count > 0).map(|(row, &count)| match row {
            RUNS | MAPPINGS => LeakedBlocks { size: None, blocks: None, bytes: count },
            class => {
                let size = block_size(class);
                LeakedBlocks { size: Some(size), blocks: Some(count), bytes: count * size }
            }
        })
    }
}

/// What is in use, in the order of [`MARK`], of which so many pages are for notes on deferred frees.
fn rows(notes: usize) -> [usize; ROWS] {
    let mut rows = [0; ROWS];
    for (class, row) in rows[..CLASSES].iter_mut().enumerate() {
        *row = (0..nodes().len()).map(|node| counts_on(node, class).out).sum();
        // A charge is kept, and so is what lies where a drain does not reach.
        let cached: usize = percpu::regions().map(|region| region.blocks_of(class)).sum();
        *row = row.saturating_sub(cached);
    }
    if let Some(class) = class_of(PAGE, 1) {
        rows[class] = rows[class].saturating_sub(notes);
    }
    rows[RUNS] = nodes().iter().map(|node| node.run_bytes.load(Ordering::Relaxed)).sum();
    // Without the page in front of each.
    let headers = mapping::MAPPINGS.load(Ordering::Relaxed) * sys::page_size();
    rows[MAPPINGS] = mapping_cache::in_use().saturating_sub(headers);
    rows
}

impl fmt::Display for Leaks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = if self.marked { " more than at the mark" } else { "" };
        let blocks: usize = self.lines().filter_map(|line| line.blocks).sum();
        let of_classes = if blocks == 1 { "block" } else { "blocks" };
        writeln!(f, "{} bytes in use{since}; {blocks} {of_classes} of the size classes", self.bytes())?;
        for (row, line) in
            self.rows.iter().enumerate().filter(|&(_, &count)| count > 0).map(|(row, _)| row).zip(self.lines())
        {
            match (line.size, line.blocks) {
                (Some(size), Some(blocks)) => writeln!(f, "{:>12} bytes in {blocks:>8} of {size}", line.bytes)?,
                _ => {
                    writeln!(f, "{:>12} bytes in {}", line.bytes, if row == RUNS { "larger runs" } else { "mappings" })?
                }
            }
        }
        match self.deferred.objects {
            0 => Ok(()),
            objects => writeln!(
                f,
                "{:>12} bytes of it or more, {objects} objects, are deferred and wait for a reader",
                self.deferred.bytes
            ),
        }
    }
}
