//! What happens when a stack is empty, full, or not to be had.
//!
//! ```text
//! alloc_slow                              free_slow
//!   try the stack again (an abort is a miss)
//!   let the stack grow if it should
//!   a batch from another CPU (transfer),    half a stack and the block into a batch,
//!   or blocks from slabs                    to another CPU (transfer), or to slabs
//!   one is returned, the others pushed
//! ```

use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, Ordering};

use super::capacity::Exclusive;
use super::region::{Event, RESERVE, Region};
use super::{Mode, cpus, mode, node_of, rseq, thread};
use crate::lock::Lock;
use crate::size_class::{BATCH_MAX, CLASS};
use crate::slab::{self, transfer};
use crate::sys;
use crate::zone::nodes;

/// Bytes that the stacks of a CPU may hold together.
const CPU_BUDGET: usize = 1 << 20;

/// Each CPU's region, once it has one.
static REGIONS: [AtomicPtr<Region>; sys::MAX_CPUS] = [const { AtomicPtr::new(null_mut()) }; sys::MAX_CPUS];
static CREATING: Lock<()> = Lock::new(());

/// The stacks this thread may use right now: its CPU's, or its own.
pub(super) enum Stacks {
    Cpu(usize, &'static Region),
    Thread(&'static Region),
}

impl Exclusive for Stacks {
    fn stop(&self) -> bool {
        match self {
            Stacks::Cpu(cpu, _) => rseq::stop_here(*cpu),
            Stacks::Thread(_) => true,
        }
    }

    fn start(&self) {
        if let Stacks::Cpu(cpu, region) = self {
            rseq::start(*cpu, region);
        }
    }
}

impl Stacks {
    pub(super) fn region(&self) -> &'static Region {
        match self {
            Stacks::Cpu(_, region) | Stacks::Thread(region) => region,
        }
    }

    pub(super) fn node(&self) -> usize {
        match self {
            Stacks::Cpu(cpu, _) => node_of(*cpu),
            Stacks::Thread(_) => node_of(sys::current_cpu()),
        }
    }

    fn pop(&self, class: usize) -> usize {
        match self {
            Stacks::Cpu(..) => rseq::pop(class) as usize,
            // SAFETY: this thread's own region, marked busy.
            Stacks::Thread(region) => unsafe { region.pop(class) },
        }
    }

    fn pop_batch(&self, class: usize, out: &mut [usize]) -> usize {
        match self {
            Stacks::Cpu(..) => rseq::pop_batch(class, out),
            // SAFETY: as in `pop`.
            Stacks::Thread(region) => unsafe { region.pop_batch(class, out) },
        }
    }

    /// # Safety
    /// All are blocks of `class` that nobody uses.
    pub(super) unsafe fn push_batch(&self, class: usize, blocks: &[usize]) -> usize {
        // SAFETY: the caller's obligation, and as in `pop`.
        unsafe {
            match self {
                Stacks::Cpu(..) => rseq::push_batch(class, blocks),
                Stacks::Thread(region) => region.push_batch(class, blocks),
            }
        }
    }

    /// # Safety
    /// All are blocks of `class` that nobody uses.
    pub(super) unsafe fn push_reserve(&self, class: usize, blocks: &[usize]) -> usize {
        // SAFETY: the caller's obligation, and as in `pop`.
        unsafe {
            match self {
                Stacks::Cpu(..) => rseq::push_reserve(class, blocks),
                Stacks::Thread(region) => region.push_batch(RESERVE + class, blocks),
            }
        }
    }
}

/// The region of a CPU, if it has one.
pub(super) fn region_of(cpu: usize) -> Option<&'static Region> {
    // Acquire, paired with the release in `create_region`. SAFETY: regions live for ever.
    unsafe { REGIONS[cpu].load(Ordering::Acquire).as_ref() }
}

#[cold]
pub(super) fn create_region(cpu: usize) -> Option<&'static Region> {
    let _creating = CREATING.lock();
    if let Some(region) = region_of(cpu) {
        return Some(region);
    }
    let region = Region::new(CPU_BUDGET)?;
    // Release, paired with the acquire in `region_of`.
    REGIONS[cpu].store(region as *const Region as *mut Region, Ordering::Release);
    rseq::start(cpu, region);
    rseq::start_reserves(cpu, region);
    Some(region)
}

/// The lock under which regions are made, for `fork`.
pub(super) fn creation_lock() -> &'static Lock<()> {
    &CREATING
}

/// Runs `f` with the stacks this thread may use, or with none: no memory for them, no registration, a signal
/// handler on top of an operation on the thread's own.
fn with_stacks<R>(f: impl FnOnce(Option<Stacks>) -> R) -> R {
    if mode() == Mode::PerThread {
        return thread::with_region(|region| f(region.map(Stacks::Thread)));
    }
    if mode() == Mode::OwnRseq && rseq::cpu().is_none() {
        rseq::register();
    }
    let cpu = rseq::cpu().filter(|&cpu| cpu < cpus());
    f(cpu.and_then(|cpu| Some(Stacks::Cpu(cpu, region_of(cpu).or_else(|| create_region(cpu))?))))
}

/// A block of `class`, after [`super::pop`] had none; null when the system gives no more memory.
#[cold]
#[inline(never)]
pub(crate) fn alloc_slow(class: usize) -> *mut u8 {
    let block = with_stacks(|stacks| match &stacks {
        Some(stacks) => refill(stacks, class),
        None => alloc_one(node_of(sys::current_cpu()), class),
    });
    if block != 0 {
        return block as *mut u8;
    }
    super::drain::reclaim();
    alloc_one(node_of(sys::current_cpu()), class) as *mut u8
}

fn alloc_one(node: usize, class: usize) -> usize {
    let mut block = [0];
    // Another node's memory is better than none.
    (node..nodes().len()).chain(0..node).any(|node| slab::alloc_bulk(node, class, &mut block) > 0);
    block[0]
}

fn refill(stacks: &Stacks, class: usize) -> usize {
    // An abort is a miss: the stack may well have something. (Per-thread stacks have not been tried at all.)
    let block = stacks.pop(class);
    if block != 0 {
        return block;
    }
    let region = stacks.region();
    if region.wanting.load(Ordering::Relaxed) {
        super::reserve::satisfy(stacks);
    }
    let wanted = region.missed(class, Event::Empty, stacks).max(1);
    region.counters.refills.fetch_add(1, Ordering::Relaxed);
    let node = stacks.node();
    if let Some(mut batch) = transfer::pop(node, class)
        && let Some((&mut block, others)) = batch.blocks().split_last_mut()
    {
        // SAFETY: blocks in transfer are nobody's.
        let put = unsafe { stacks.push_batch(class, others) };
        slab::free_bulk(class, &others[put..]);
        return block;
    }
    let mut blocks = [0; BATCH_MAX];
    let got = slab::alloc_bulk(node, class, &mut blocks[..wanted]);
    if got == 0 {
        return 0;
    }
    // The lowest address is handed out now and the next ones on top of the stack.
    blocks[..got].reverse();
    let (others, block) = (&blocks[..got - 1], blocks[got - 1]);
    // SAFETY: fresh from the slab.
    let put = unsafe { stacks.push_batch(class, others) };
    slab::free_bulk(class, &others[put..]);
    block
}

/// Frees a block of `class`, after [`super::push`] had no room.
///
/// # Safety
/// `block` is a block of `class` that nobody uses.
#[cold]
#[inline(never)]
pub(crate) unsafe fn free_slow(class: usize, block: *mut u8) {
    with_stacks(|stacks| match &stacks {
        // SAFETY: the caller's obligation.
        Some(stacks) => unsafe { flush(stacks, class, block as usize) },
        None => slab::free_bulk(class, &[block as usize]),
    });
}

/// # Safety
/// As for [`free_slow`].
unsafe fn flush(stacks: &Stacks, class: usize, block: usize) {
    // SAFETY: the caller's obligation.
    let push = || unsafe { stacks.push_batch(class, &[block]) == 1 };
    if push() {
        return;
    }
    let region = stacks.region();
    if region.wanting.load(Ordering::Relaxed) {
        super::reserve::satisfy(stacks);
    }
    let surplus = region.missed(class, Event::Full, stacks);
    if push() {
        return;
    }
    region.counters.flushes.fetch_add(1, Ordering::Relaxed);
    if surplus == 0 {
        return slab::free_bulk(class, &[block]);
    }
    let Some(mut batch) = transfer::BatchBox::new() else {
        return slab::free_bulk(class, &[block]);
    };
    let mut len = stacks.pop_batch(class, &mut batch.room()[..surplus.min(BATCH_MAX - 1)]);
    if !push() {
        batch.room()[len] = block;
        len += 1;
    }
    batch.set_len(len);
    if len == 0 {
        // Nothing could be taken, and then the block had room after all: others work on this CPU, too.
        return;
    }
    // A run of its own goes home at once: its zone merges it, and batches save it nothing.
    if CLASS[class].is_run() {
        return slab::free_bulk(class, batch.blocks());
    }
    if let Err(mut batch) = transfer::push(stacks.node(), class, batch) {
        slab::free_bulk(class, batch.blocks());
    }
}
