//! Batches of blocks on their way from one CPU to another.
//!
//! A CPU whose stack of a class is full fills a batch and pushes it here; one of the same shard whose stack is empty pops a
//! whole batch, without touching a slab or a lock. A shard that has enough of them sends those with blocks of others there.
//! Batches are named by number and never unmapped, as a [`Stack`] needs it.

use core::iter;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};

use super::bulk;
use super::shard::{self, Division, SHARDS, shards, shards_of_all_classes};
use crate::size_class::{BATCH, BATCH_MAX, CLASS, CLASSES, block_size};
use crate::tagged_stack::{Links, NUMBER_BITS, Stack};
use crate::zone::{META, nodes};

/// Room for blocks: [`BATCH`] of them in 512 bytes, or in four times as much, of which these are the start, [`BATCH_MAX`].
#[repr(C, align(64))]
struct Batch {
    link: AtomicU32,
    len: u8,
    kind: Kind,
    /// Whose blocks these are, where batches of several classes are together.
    class: u8,
    /// Whose CPUs had it last: it goes to their spare ones.
    shard: u8,
    blocks: [usize; BATCH],
}

/// How much room there is. Were all batches large, those on their way would take four times the memory: most have few blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Small,
    Large,
}

impl Kind {
    const fn room(self) -> usize {
        match self {
            Kind::Small => BATCH,
            Kind::Large => BATCH_MAX,
        }
    }

    /// Numbers that one takes up, of which the first, a multiple of this, is its own.
    const fn numbers(self) -> u32 {
        match self {
            Kind::Small => 1,
            Kind::Large => 4,
        }
    }
}

const _: () = assert!(size_of::<Batch>() == 512 && CLASSES <= 1 << u8::BITS && SHARDS <= 1 << u8::BITS);
const _: () =
    assert!((BATCH_MAX - BATCH) * size_of::<usize>() == 3 * size_of::<Batch>() && BATCH_MAX <= u8::MAX as usize);

/// log2 of the batches in a chunk.
const CHUNK_BITS: u32 = 6;
const CHUNKS: usize = 1 << (NUMBER_BITS - CHUNK_BITS - 4);

/// Where batches live: chunks made on demand, found by the upper bits of a batch's number.
struct Pool {
    chunks: [AtomicPtr<Batch>; CHUNKS],
    made: AtomicU32,
    spare: [Spare; SHARDS],
}

/// Batches that nobody uses, by kind, and whose CPUs have them in their caches.
#[repr(align(64))]
struct Spare([Stack; 2]);

static POOL: Pool = Pool::new();

impl Links for Pool {
    fn link(&self, number: u32) -> &AtomicU32 {
        // SAFETY: the number came from `POOL`, so its batch exists, and batches are never unmapped. The
        // link is only ever used atomically, so it may be looked at while another thread holds the batch.
        unsafe { &(*self.at(number)).link }
    }
}

impl Pool {
    const fn new() -> Pool {
        let chunks = [const { AtomicPtr::new(null_mut()) }; CHUNKS];
        Pool { chunks, made: AtomicU32::new(1), spare: [const { Spare([const { Stack::new() }; 2]) }; SHARDS] }
    }

    fn at(&self, number: u32) -> *mut Batch {
        // Acquire, paired with the release in `get`.
        let chunk = self.chunks[(number >> CHUNK_BITS) as usize].load(Ordering::Acquire);
        // SAFETY: a number is made after its chunk, which holds 1 << CHUNK_BITS batches.
        unsafe { chunk.add(number as usize & ((1 << CHUNK_BITS) - 1)) }
    }

    /// The number of a batch that nobody uses, for a CPU of `shard`.
    fn get(&self, shard: usize, kind: Kind) -> Option<u32> {
        self.get_with(shard, kind, || META.alloc(size_of::<Batch>() << CHUNK_BITS, 64))
    }

    /// The same with memory for a chunk from `memory`.
    fn get_with(&self, shard: usize, kind: Kind, memory: impl Fn() -> Option<NonNull<u8>>) -> Option<u32> {
        let spare = |shard: usize| &self.spare[shard].0[kind as usize];
        // Those of others are better than new ones: where blocks go from shard to shard, so do batches.
        let all = iter::once(shard).chain(shards_of_all_classes().filter(|&other| other != shard));
        if let Some(number) = all.filter(|&shard| spare(shard).len() > 0).find_map(|shard| spare(shard).pop(self)) {
            return Some(number);
        }
        // Relaxed: the value is the whole of what is taken. It is taken after there is memory for it, so that failures,
        // however many, use up no numbers.
        let mut made = self.made.load(Ordering::Relaxed);
        loop {
            // A chunk has a multiple of what either kind takes up, so that none reaches into the next.
            let number = made.next_multiple_of(kind.numbers());
            let chunk = self.chunks.get((number >> CHUNK_BITS) as usize)?;
            if chunk.load(Ordering::Acquire).is_null() {
                let made = memory()?.cast().as_ptr();
                // Release, paired with the acquire in `at`. If another thread was first, ours is wasted.
                let _ = chunk.compare_exchange(null_mut(), made, Ordering::Release, Ordering::Relaxed);
            }
            let next = number + kind.numbers();
            match self.made.compare_exchange_weak(made, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(number),
                Err(now) => made = now,
            }
        }
    }

    /// Takes one back.
    fn put(&self, shard: usize, kind: Kind, number: u32) {
        self.spare[shard].0[kind as usize].push(self, number);
    }
}

/// A batch that this thread holds; goes back to the pool when dropped.
pub(crate) struct BatchBox {
    number: u32,
}

impl BatchBox {
    /// An empty batch with room for [`BATCH`] blocks, for a CPU of `shard`; `None` when the system gives no more memory.
    pub(crate) fn new(shard: usize) -> Option<BatchBox> {
        BatchBox::of(shard, Kind::Small)
    }

    /// An empty batch with room for so many blocks, at most [`BATCH_MAX`].
    pub(crate) fn with_room(shard: usize, blocks: usize) -> Option<BatchBox> {
        BatchBox::of(shard, if blocks <= BATCH { Kind::Small } else { Kind::Large })
    }

    fn of(shard: usize, kind: Kind) -> Option<BatchBox> {
        let mut batch = BatchBox { number: POOL.get(shard, kind)? };
        // SAFETY: as in `room`.
        unsafe { (*batch.batch()).kind = kind };
        batch.note_shard(shard);
        batch.set_len(0);
        Some(batch)
    }

    fn note_shard(&mut self, shard: usize) {
        // SAFETY: as in `room`.
        unsafe { (*self.batch()).shard = shard as u8 };
    }

    fn shard(&self) -> usize {
        // SAFETY: as in `room`; set when the batch was taken from the pool.
        unsafe { (*self.batch()).shard as usize }
    }

    fn kind(&self) -> Kind {
        // SAFETY: as in `room`; set when the batch was taken from the pool.
        unsafe { (*self.batch()).kind }
    }

    fn batch(&self) -> *mut Batch {
        POOL.at(self.number)
    }

    /// All the room there is, for someone to fill.
    pub(crate) fn room(&mut self) -> &mut [usize] {
        let room = self.kind().room();
        // SAFETY: a number is held by one thread at a time, so this is the only reference to the field; the link, which other
        // threads may look at, is not part of it. A large batch goes on behind the field: the numbers that follow are its own,
        // and they lie in the same chunk, from which the pointer comes.
        unsafe { core::slice::from_raw_parts_mut((&raw mut (*self.batch()).blocks).cast::<usize>(), room) }
    }

    pub(crate) fn blocks(&mut self) -> &mut [usize] {
        let len = self.len();
        &mut self.room()[..len]
    }

    pub(crate) fn len(&self) -> usize {
        // SAFETY: as in `room`.
        unsafe { (*self.batch()).len as usize }
    }

    pub(crate) fn set_len(&mut self, len: usize) {
        // SAFETY: as in `room`.
        unsafe { (*self.batch()).len = len as u8 }
    }
}

/// Batches of any class, put together quickly and given back to the slabs later.
pub(crate) struct Bundle(Stack);

impl Bundle {
    pub(crate) fn new() -> Bundle {
        Bundle(Stack::new())
    }

    pub(crate) fn add(&self, class: usize, batch: BatchBox) {
        // SAFETY: the batch is ours, as in `room`.
        unsafe { (*batch.batch()).class = class as u8 };
        let number = batch.number;
        core::mem::forget(batch);
        self.0.push(&POOL, number);
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        while let Some(number) = self.0.pop(&POOL) {
            let mut batch = BatchBox { number };
            // SAFETY: as in `add`.
            let class = unsafe { (*batch.batch()).class } as usize;
            crate::slab::free_bulk(class, batch.blocks());
        }
    }
}

impl Drop for BatchBox {
    fn drop(&mut self) {
        POOL.put(self.shard(), self.kind(), self.number);
    }
}

/// Most bytes of batches in transfer, per CPU of the machine, by division: of large blocks, and of small ones.
pub(crate) const TRANSFER_BYTES_PER_CPU: [usize; 2] = [256 << 10, 64 << 10];

/// Batches of a class on their way to the CPUs of a shard.
#[repr(align(64))]
struct Lane {
    batches: Stack,
    /// Who was out of blocks last. Relaxed throughout: a hint.
    taker: AtomicUsize,
}

impl Lane {
    const fn new() -> Lane {
        Lane { batches: Stack::new(), taker: AtomicUsize::new(0) }
    }
}

/// Those of all shards, by class.
static LANES: [[Lane; CLASSES]; SHARDS] = [const { [const { Lane::new() }; CLASSES] }; SHARDS];

/// Notes that `who`, a number other than 0 for each whose stacks these are, is out of blocks of the class.
pub(crate) fn note_taker(shard: usize, class: usize, who: usize) {
    let taker = &LANES[shard][class].taker;
    // Most are alone with their class: their line stays as it is.
    if taker.load(Ordering::Relaxed) != who {
        taker.store(who, Ordering::Relaxed);
    }
}

/// Who was the last of the shard to be out of blocks of the class; 0 for nobody yet.
pub(crate) fn taker(shard: usize, class: usize) -> usize {
    LANES[shard][class].taker.load(Ordering::Relaxed)
}

/// Bytes of blocks on the lanes of a shard. Relaxed throughout: a bound kept to within a batch per CPU.
#[repr(align(64))]
struct Bytes(AtomicUsize);
/// Those of all shards, by division.
static BYTES: [[Bytes; SHARDS]; 2] = [const { [const { Bytes(AtomicUsize::new(0)) }; SHARDS] }; 2];
/// Most that there may be of a shard, by division. Set once, at initialisation.
static BYTES_MAX: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];

fn bytes_on(shard: usize, class: usize) -> &'static AtomicUsize {
    &BYTES[Division::of(class) as usize][shard].0
}

/// Sets the bounds for a machine of `cpus` processors.
pub(crate) fn init(cpus: usize) {
    for division in Division::ALL {
        let all = cpus.saturating_mul(TRANSFER_BYTES_PER_CPU[division as usize]);
        BYTES_MAX[division as usize].store(all / (nodes().len() * division.per_node()), Ordering::Relaxed);
    }
}

/// Bytes of blocks in transfer.
pub(crate) fn bytes() -> usize {
    let all = BYTES.iter().flat_map(|bytes| shards_of_all_classes().map(|shard| &bytes[shard].0));
    all.map(|bytes| bytes.load(Ordering::Relaxed)).sum()
}

/// Passes a batch on to CPUs of `here`, which have the blocks in their caches; if enough are on their way there, to those of
/// another shard that blocks are from. Gives it back if they are from no other, or that has enough, too.
pub(crate) fn push(here: usize, class: usize, mut batch: BatchBox) -> Result<(), BatchBox> {
    let bytes = batch.len() * block_size(class);
    let has_room = |&shard: &usize| has_room(shard, class, bytes);
    let from = || other_shard_of(here, class, batch.blocks()).filter(has_room);
    let to = Some(here).filter(has_room).or_else(from);
    push_to(to, class, batch)
}

/// Passes a batch on to CPUs of a shard that blocks are from, other than `here`. Gives it back if they are from no other, or that
/// has enough.
pub(crate) fn push_back(here: usize, class: usize, mut batch: BatchBox) -> Result<(), BatchBox> {
    let bytes = batch.len() * block_size(class);
    let to = other_shard_of(here, class, batch.blocks()).filter(|&shard| has_room(shard, class, bytes));
    push_to(to, class, batch)
}

fn push_to(shard: Option<usize>, class: usize, batch: BatchBox) -> Result<(), BatchBox> {
    let Some(shard) = shard else { return Err(batch) };
    bytes_on(shard, class).fetch_add(batch.len() * block_size(class), Ordering::Relaxed);
    let number = batch.number;
    core::mem::forget(batch);
    LANES[shard][class].batches.push(&POOL, number);
    Ok(())
}

/// Whether a shard's lane of a class may have so many bytes more: a class fills an eighth of the bound, but at least two batches.
fn has_room(shard: usize, class: usize, bytes: usize) -> bool {
    let bound = BYTES_MAX[Division::of(class) as usize].load(Ordering::Relaxed);
    let usual = CLASS[class].batch as usize * block_size(class);
    let most = (bound / 8 / bytes.max(usual)).max(2);
    (LANES[shard][class].batches.len() as usize) < most
        && bytes_on(shard, class).load(Ordering::Relaxed) + bytes <= bound
}

/// A shard other than `here` that blocks of a batch are from, by a look at three of them.
fn other_shard_of(here: usize, class: usize, blocks: &[usize]) -> Option<usize> {
    let looked_at = [blocks.first(), blocks.get(blocks.len() / 2), blocks.last()];
    looked_at.into_iter().flatten().map(|&block| bulk::shard_of_block(class, block)).find(|&shard| shard != here)
}

/// A batch of the class for a shard.
pub(crate) fn pop(shard: usize, class: usize) -> Option<BatchBox> {
    let lane = &LANES[shard][class].batches;
    if lane.len() == 0 {
        return None;
    }
    let mut batch = BatchBox { number: lane.pop(&POOL)? };
    batch.note_shard(shard);
    bytes_on(shard, class).fetch_sub(batch.len() * block_size(class), Ordering::Relaxed);
    Some(batch)
}

/// A batch of the class for another shard of the same node.
pub(crate) fn pop_other(shard: usize, class: usize) -> Option<BatchBox> {
    let mut batch = shard::others(shard, class).find_map(|other| pop(other, class))?;
    batch.note_shard(shard);
    Some(batch)
}

/// How often batches came and went: those in transfer, and empty ones.
#[cfg(feature = "debug")]
pub(crate) fn changes() -> (u64, u64) {
    (
        LANES.as_flattened().iter().map(|lane| lane.batches.changes()).sum(),
        POOL.spare.iter().flat_map(|spare| &spare.0).map(Stack::changes).sum(),
    )
}

/// Gives everything in transfer back to the slabs; returns the bytes.
pub(crate) fn drain() -> usize {
    let mut bytes = 0;
    for class in 0..CLASSES {
        for shard in shards(class) {
            while let Some(mut batch) = pop(shard, class) {
                bytes += batch.len() * block_size(class);
                crate::slab::free_bulk(class, batch.blocks());
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Red if a number is taken before there is memory for it: in `get_with`, advance `made` first.
    #[test]
    fn refusals_use_up_no_numbers() {
        let pool = Pool::new();
        for _ in 0..=CHUNKS << CHUNK_BITS {
            assert_eq!(pool.get_with(0, Kind::Small, || None), None);
            assert_eq!(pool.get_with(0, Kind::Large, || None), None);
        }
        assert_eq!((pool.get(0, Kind::Small), pool.get(0, Kind::Small)), (Some(1), Some(2)));
    }

    /// Batches of both kinds have their room to themselves, and come back as what they were.
    ///
    /// Red if a large one takes up three numbers, begins where the last one ended, or goes back among the small ones.
    #[test]
    fn batches_do_not_overlap() {
        let mut batches: Vec<BatchBox> =
            (0..200).map(|n| BatchBox::with_room(0, if n % 3 == 0 { BATCH + 1 } else { BATCH }).unwrap()).collect();
        let large = |batches: &[BatchBox]| batches.iter().filter(|batch| batch.kind() == Kind::Large).count();
        assert_eq!(large(&batches), 67);
        for (n, batch) in batches.iter_mut().enumerate() {
            assert_eq!(batch.number % batch.kind().numbers(), 0);
            batch.room().fill(n + 1);
        }
        for (n, batch) in batches.iter_mut().enumerate() {
            assert_eq!(batch.room().len(), if n % 3 == 0 { BATCH_MAX } else { BATCH });
            assert!(batch.room().iter().all(|&word| word == n + 1), "batch {n}");
        }
        let pool = Pool::new();
        let number = pool.get(0, Kind::Large).unwrap();
        pool.put(0, Kind::Large, number);
        assert_ne!(pool.get(0, Kind::Small), Some(number));
        assert_eq!(pool.get(0, Kind::Large), Some(number));
    }
}
