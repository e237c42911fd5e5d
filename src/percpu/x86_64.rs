//! The restartable sequences on x86-64.
//!
//! Every section below begins the same way. In pseudo-code:
//!
//! ```text
//! rseq.rseq_cs = &descriptor            // arms the section
//! start:
//!     cpu  = rseq.cpu_id                // sign-extended: -1 and -2 where this thread has no rseq
//!     head = STOPPED.headers[class] + TABLE[cpu]
//!     …
//!     store                             // the commit, literally the last instruction
//! end:
//! abort:                                // where the kernel sends us if anything came between
//!     result = miss
//!     goto end
//! ```
//!
//! `TABLE[cpu]` is the distance from `STOPPED` to the CPU's region, so 0, which is what the table starts as
//! and what a stopped CPU has, leads to headers that are empty and full at once. One addition thus answers
//! at no cost whether the heap is initialised, the thread registered and the CPU running. The table has
//! entries -1 and -2 for threads without rseq, and its entry is loaded inside the section: a value from
//! before `start` would survive a preemption and a fence, and be stale after them.
//!
//! Deviations from the obvious, each measured (see `src/README.md`):
//! 1. The header's address is formed first and then used without index or displacement: such a store is
//!    forwarded to the next load at register speed, others at five cycles.
//! 2. `pop` does not prefetch the block below the one it takes: that would be two more instructions for everyone,
//!    and a batch that fits no first-level cache is not faster for it.
//! 3. An abort is a miss, not a retry: the slow path tries again, a bounded number of times. So a debugger
//!    can step through a program line by line, which aborts every section, and the program still proceeds.
//! 4. No field of the rseq area is written but `rseq_cs`, and that is not cleared on the way out: the kernel
//!    does so when it next looks. (Linux Documentation/userspace-api/rseq.rst.)

use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};

use super::Mode;
use super::region::Region;
use super::region::{FLOOR, HEADERS, RESERVE};
use super::stopped::STOPPED;
use crate::sys;

// This thread's own rseq area, for when the C library has registered none. Until it is registered its ids
// say -1, and `rseq_cs` takes what the sections write without meaning anything. `registration` is how far
// this thread got: 0 not tried, 1 done, 2 refused.
//
// The sections use the area at our own's offset from the thread pointer, which the linker knows, plus `delta`: 0 to
// begin with, so that they are right before the first instruction runs. (The offset itself cannot be a word that the
// linker fills in, which none does for a shared library; there it comes from the global offset table, and in a
// program it is a constant: "ELF Handling For Thread-Local Storage", initial exec.)
global_asm!(
    ".pushsection .tdata.pcpalloc_rseq, \"awT\", @progbits",
    ".balign 32",
    ".hidden __pcpalloc_0_1_rseq_area",
    ".globl __pcpalloc_0_1_rseq_area",
    ".type __pcpalloc_0_1_rseq_area, @object",
    ".size __pcpalloc_0_1_rseq_area, 64",
    "__pcpalloc_0_1_rseq_area:",
    ".long 0, 0xffffffff",
    ".zero 56",
    ".popsection",
    ".pushsection .bss.pcpalloc_rseq, \"aw\", @nobits",
    ".balign 8",
    ".hidden __pcpalloc_0_1_rseq_delta",
    ".globl __pcpalloc_0_1_rseq_delta",
    ".type __pcpalloc_0_1_rseq_delta, @object",
    ".size __pcpalloc_0_1_rseq_delta, 8",
    "__pcpalloc_0_1_rseq_delta:",
    ".zero 8",
    ".popsection",
);

unsafe extern "C" {
    #[link_name = "__pcpalloc_0_1_rseq_delta"]
    static DELTA: Delta;
}

/// A word that `init` writes once, while nobody depends on which of two right values it holds.
#[repr(transparent)]
struct Delta(UnsafeCell<isize>);

// SAFETY: aligned words are read and written whole on this architecture; both values lead to a valid area.
unsafe impl Sync for Delta {}

/// Where the own area's `registration` word lies, from the area.
const REGISTRATION: isize = 32;

/// Entries before that of CPU 0.
const UNREGISTERED: usize = 2;

/// Distance from `STOPPED` to each CPU's region; 0 while it has none or is stopped.
struct Table([AtomicUsize; sys::MAX_CPUS + UNREGISTERED]);
static TABLE: Table = Table([const { AtomicUsize::new(0) }; sys::MAX_CPUS + UNREGISTERED]);
/// The same for the reserves of each CPU, which a charge stops and nothing else: a drain, or whoever is preempted
/// in the middle of one, does not keep nolock allocation from them.
static RESERVES: Table = Table([const { AtomicUsize::new(0) }; sys::MAX_CPUS + UNREGISTERED]);

/// Where our own area lies, from the thread pointer.
#[inline(always)]
fn own_offset() -> isize {
    let offset;
    // SAFETY: reads a constant, or a word of the global offset table.
    unsafe {
        asm!("mov {}, qword ptr [rip + __pcpalloc_0_1_rseq_area@GOTTPOFF]", out(reg) offset,
             options(nostack, preserves_flags, readonly, pure));
    }
    offset
}

/// Where the area lies that is used, from the thread pointer.
#[inline(always)]
fn offset() -> isize {
    // SAFETY: the symbol is defined above; see the type for the race with `init`.
    unsafe { own_offset() + *DELTA.0.get() }
}

impl Table {
    /// Entry 0.
    #[inline(always)]
    fn entries(&self) -> *const AtomicUsize {
        &self.0[UNREGISTERED]
    }
}

#[inline(always)]
fn stopped(class: usize) -> *const super::stopped::StoppedHeader {
    debug_assert!(class < HEADERS);
    // SAFETY: indices of stacks are smaller than HEADERS.
    unsafe { STOPPED.headers.get_unchecked(class) }
}

/// Arms a section: finds the area, names the descriptor (label 3 of the cold part) and starts (label 4).
macro_rules! enter {
    () => {
        "mov {off}, qword ptr [rip + __pcpalloc_0_1_rseq_delta]
         add {off}, qword ptr [rip + __pcpalloc_0_1_rseq_area@GOTTPOFF]
         lea {t}, [rip + 3f]
         mov qword ptr fs:[{off} + 8], {t}
         4:"
    };
}

/// Leaves the address of the class's header on this CPU in `h`.
macro_rules! header {
    () => {
        "movsxd {t}, dword ptr fs:[{off} + 4]
         mov {h}, qword ptr [{table} + 8*{t}]
         add {h}, {stopped}"
    };
}

/// Ends a section (label 5) and adds its cold parts: the descriptor, in the ELF section where tools and tests find
/// all of them, and the abort handler behind its signature, which is laid out as the operand of an undefined
/// instruction so that disassemblers stay in step. (librseq `rseq/arch/x86.h`.)
macro_rules! leave {
    ($on_abort:literal) => {
        concat!(
            "5:
             .pushsection __rseq_cs, \"aw\", @progbits
             .balign 32
             3: .long 0, 0
             .quad 4b, 5b - 4b, 6f
             .popsection
             .pushsection .text.unlikely.pcpalloc_rseq_abort, \"ax\", @progbits
             .byte 0x0f, 0xb9, 0x3d
             .long ",
            "0x53053053",
            "
             6: ",
            $on_abort,
            "
             .popsection"
        )
    };
}

const _: () = assert!(sys::RSEQ_SIGNATURE == 0x5305_3053);

/// Takes the block on top of this CPU's stack; 0 is a miss: the stack is empty, the CPU stopped or the section
/// aborted.
///
/// ```text
/// block = head.top[-1]
/// if block is 0: return it               // the sentinel: empty, or stopped
/// head.top -= 1                          // commit
/// ```
#[inline(always)]
pub(super) fn pop(class: usize) -> *mut u8 {
    pop_in(&TABLE, class)
}

/// As [`pop`], from a class's reserve.
pub(super) fn pop_reserve(class: usize) -> *mut u8 {
    pop_in(&RESERVES, RESERVE + class)
}

#[inline(always)]
fn pop_in(table: &Table, class: usize) -> *mut u8 {
    // A pointer from the start, so that the compiler sees the caller's test for null to be the same as ours.
    let block: *mut u8;
    // SAFETY: the section reads this CPU's header and the entry below its top, which exist for every CPU and
    // for `STOPPED` (whose sentinel is 0, so that it is never written); it writes `rseq_cs` and the header.
    // It completes on one CPU without another section of that CPU between, or has no effect.
    unsafe {
        asm!(
            enter!(),
            header!(),
            "mov {c}, qword ptr [{h}]
             mov {block}, qword ptr [{c} - 8]
             test {block}, {block}
             jz 5f
             sub {c}, 8
             mov qword ptr [{h}], {c}",
            leave!("xor {block:e}, {block:e}
                    jmp 5b"),
            off = out(reg) _,
            table = in(reg) table.entries(),
            stopped = in(reg) stopped(class),
            t = out(reg) _,
            h = out(reg) _,
            c = out(reg) _,
            block = out(reg) block,
            options(nostack),
        );
    }
    block
}

/// What [`pop_above_floor`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AboveFloor {
    Block(usize),
    /// Nothing, or the CPU is stopped.
    Empty,
    /// What there is must not be taken.
    Floor,
    /// Something came between: worth another try.
    Aborted,
}

/// Takes the block on top of this CPU's stack, unless the stack would then hold less than its floor.
///
/// ```text
/// block = head.top[-1]
/// if block is 0: return it
/// if head.top <= floor: return refusal
/// head.top -= 1                          // commit
/// ```
pub(super) fn pop_above_floor(class: usize) -> AboveFloor {
    let table = &TABLE;
    const REFUSED: usize = 1;
    const ABORTED: usize = 2;
    let block: usize;
    // SAFETY: as for `pop`; the floor of a class is a fixed distance behind its header, in `STOPPED` too.
    unsafe {
        asm!(
            enter!(),
            header!(),
            "mov {c}, qword ptr [{h}]
             mov {block}, qword ptr [{c} - 8]
             test {block}, {block}
             jz 5f
             cmp {c}, qword ptr [{h} + {floor}]
             mov {t:e}, 1
             cmovbe {block}, {t}
             jbe 5f
             sub {c}, 8
             mov qword ptr [{h}], {c}",
            leave!("mov {block:e}, 2
                    jmp 5b"),
            off = out(reg) _,
            table = in(reg) table.entries(),
            stopped = in(reg) stopped(class),
            floor = const FLOOR * 16,
            t = out(reg) _,
            h = out(reg) _,
            c = out(reg) _,
            block = out(reg) block,
            options(nostack),
        );
    }
    match block {
        0 => AboveFloor::Empty,
        REFUSED => AboveFloor::Floor,
        ABORTED => AboveFloor::Aborted,
        block => AboveFloor::Block(block),
    }
}

/// Puts a block on this CPU's stack; false if the stack is full, the CPU stopped or the section aborted.
///
/// ```text
/// if head.top >= head.limit: return false
/// head.top[0] = block
/// head.top += 1                          // commit
/// ```
///
/// # Safety
/// `block` is a block of `class` that nobody uses.
#[inline(always)]
pub(super) unsafe fn push(class: usize, block: usize) -> bool {
    let table = &TABLE;
    // SAFETY: as for `pop`; the entry written lies below the limit, so inside the array and above every entry
    // in use. `STOPPED` has its top at its limit, so it is never written.
    unsafe {
        asm!(
            enter!(),
            header!(),
            "mov {c}, qword ptr [{h}]
             cmp {c}, qword ptr [{h} + 8]
             jae {miss}
             mov qword ptr [{c}], {block}
             add {c}, 8
             mov qword ptr [{h}], {c}",
            leave!("jmp {miss}"),
            off = out(reg) _,
            table = in(reg) table.entries(),
            stopped = in(reg) stopped(class),
            block = in(reg) block,
            t = out(reg) _,
            h = out(reg) _,
            c = out(reg) _,
            miss = label { return false },
            options(nostack),
        );
    }
    true
}

/// Takes blocks from this CPU's stack into `out`; returns how many, 0 also if the section was aborted.
///
/// ```text
/// top = head.top; n = 0
/// while n < out.len() and top[-1] is not 0:
///     out[n++] = *--top
/// if n > 0: head.top = top               // commit
/// ```
pub(super) fn pop_batch(class: usize, out: &mut [usize]) -> usize {
    let table = &TABLE;
    if out.is_empty() {
        return 0;
    }
    let mut taken: usize;
    // SAFETY: as for `pop`. `out` is the caller's own: what is written there before an abort is meaningless
    // and not looked at.
    unsafe {
        asm!(
            enter!(),
            "xor {n:e}, {n:e}",
            header!(),
            "mov {c}, qword ptr [{h}]
             7:
             mov {t}, qword ptr [{c} - 8]
             test {t}, {t}
             jz 8f
             mov qword ptr [{out} + 8*{n}], {t}
             sub {c}, 8
             inc {n}
             cmp {n}, {len}
             jb 7b
             8:
             test {n}, {n}
             jz 5f
             mov qword ptr [{h}], {c}",
            leave!("xor {n:e}, {n:e}
                    jmp 5b"),
            off = out(reg) _,
            table = in(reg) table.entries(),
            stopped = in(reg) stopped(class),
            out = in(reg) out.as_mut_ptr(),
            len = in(reg) out.len(),
            t = out(reg) _,
            h = out(reg) _,
            c = out(reg) _,
            n = out(reg) taken,
            options(nostack),
        );
    }
    taken
}

/// Puts blocks on this CPU's stack, the last of them on top; returns how many, 0 also if the section was
/// aborted. They are taken from the front of `blocks`.
///
/// ```text
/// top = head.top; n = 0
/// while n < blocks.len() and top < head.limit:
///     *top++ = blocks[n++]
/// if n > 0: head.top = top               // commit
/// ```
///
/// # Safety
/// All are blocks of `class` that nobody uses.
pub(super) unsafe fn push_batch(class: usize, blocks: &[usize]) -> usize {
    // SAFETY: the caller's obligation.
    unsafe { push_batch_in(&TABLE, class, blocks) }
}

/// As [`push_batch`], to a class's reserve.
///
/// # Safety
/// As for [`push_batch`].
pub(super) unsafe fn push_reserve(class: usize, blocks: &[usize]) -> usize {
    // SAFETY: the caller's obligation.
    unsafe { push_batch_in(&RESERVES, RESERVE + class, blocks) }
}

/// # Safety
/// As for [`push_batch`].
unsafe fn push_batch_in(table: &Table, class: usize, blocks: &[usize]) -> usize {
    if blocks.is_empty() {
        return 0;
    }
    let mut put: usize;
    // SAFETY: as for `push`. Entries above the top mean nothing, so those written before an abort do no harm.
    unsafe {
        asm!(
            enter!(),
            "xor {n:e}, {n:e}",
            header!(),
            "mov {c}, qword ptr [{h}]
             7:
             cmp {c}, qword ptr [{h} + 8]
             jae 8f
             mov {t}, qword ptr [{blocks} + 8*{n}]
             mov qword ptr [{c}], {t}
             add {c}, 8
             inc {n}
             cmp {n}, {len}
             jb 7b
             8:
             test {n}, {n}
             jz 5f
             mov qword ptr [{h}], {c}",
            leave!("xor {n:e}, {n:e}
                    jmp 5b"),
            off = out(reg) _,
            table = in(reg) table.entries(),
            stopped = in(reg) stopped(class),
            blocks = in(reg) blocks.as_ptr(),
            len = in(reg) blocks.len(),
            t = out(reg) _,
            h = out(reg) _,
            c = out(reg) _,
            n = out(reg) put,
            options(nostack),
        );
    }
    put
}

/// Stops `cpu`, if this thread runs there; false if it does not, or the section was aborted.
///
/// ```text
/// if rseq.cpu_id != cpu: return false
/// TABLE[cpu] = 0                         // commit
/// ```
///
/// The caller then has the CPU's stacks to itself without a fence: threads that were inside a section there
/// are not running, since we are, and abort when they do; threads that come later load the table's entry
/// inside their section, on the CPU where it was written or after a switch to it.
///
/// The caller holds the lock of the CPU's region, and starts the CPU again.
pub(super) fn stop_here(cpu: usize) -> bool {
    stop_here_in(&TABLE, cpu)
}

/// As [`stop_here`], for the reserves of the CPU alone.
pub(super) fn stop_reserves_here(cpu: usize) -> bool {
    stop_here_in(&RESERVES, cpu)
}

fn stop_here_in(table: &Table, cpu: usize) -> bool {
    // SAFETY: `cpu` is this thread's own id when the entry is written, so it is inside the table.
    unsafe {
        asm!(
            enter!(),
            "movsxd {t}, dword ptr fs:[{off} + 4]
             cmp {t}, {cpu}
             jne {miss}
             mov qword ptr [{table} + 8*{t}], 0",
            leave!("jmp {miss}"),
            off = out(reg) _,
            table = in(reg) table.entries(),
            cpu = in(reg) cpu,
            t = out(reg) _,
            miss = label { return false },
            options(nostack),
        );
    }
    true
}

/// Stops `cpu` from anywhere; false if its threads cannot be fenced, and it is running as before.
///
/// The caller holds the lock of the CPU's region, and starts the CPU again.
pub(super) fn stop(cpu: usize, region: &Region) -> bool {
    stop_in(&TABLE, cpu, region)
}

/// As [`stop`], for the reserves of the CPU alone.
pub(super) fn stop_reserves(cpu: usize, region: &Region) -> bool {
    stop_in(&RESERVES, cpu, region)
}

fn stop_in(table: &Table, cpu: usize, region: &Region) -> bool {
    // Relaxed: the fence orders it before everything that its return promises.
    table.0[UNREGISTERED + cpu].store(0, Ordering::Relaxed);
    if sys::fence_cpu(cpu) {
        return true;
    }
    start_in(table, cpu, region);
    false
}

/// Lets the threads of `cpu` use its region, for the first time or again.
pub(super) fn start(cpu: usize, region: &Region) {
    start_in(&TABLE, cpu, region);
}

/// As [`start`], for the reserves of the CPU alone.
pub(super) fn start_reserves(cpu: usize, region: &Region) {
    start_in(&RESERVES, cpu, region);
}

fn start_in(table: &Table, cpu: usize, region: &Region) {
    let distance = (region as *const Region as usize).wrapping_sub(&raw const STOPPED as usize);
    // Release, paired with the loads of the entry in the sections, which depend on it: whoever finds the
    // region finds it as the caller left it.
    table.0[UNREGISTERED + cpu].store(distance, Ordering::Release);
}

/// Stops `cpu` without seeing to those who are inside a section there: for a test of what the fence is for.
#[cfg(feature = "debug")]
pub(super) fn stop_without_fence(cpu: usize) {
    TABLE.0[UNREGISTERED + cpu].store(0, Ordering::Relaxed);
}

/// Whether the CPU's stacks can be found, and its reserves.
#[cfg(feature = "debug")]
pub(super) fn is_running(cpu: usize) -> (bool, bool) {
    let running = |table: &Table| table.0[UNREGISTERED + cpu].load(Ordering::Relaxed) != 0;
    (running(&TABLE), running(&RESERVES))
}

/// The CPU this thread runs on, as a hint; `None` if the thread has no rseq.
pub(super) fn cpu() -> Option<usize> {
    let id: i32;
    // SAFETY: reads the id of this thread's area, which exists from the start.
    unsafe {
        asm!("mov {id:e}, dword ptr fs:[{off} + 4]", id = out(reg) id, off = in(reg) offset(),
             options(nostack, preserves_flags, readonly));
    }
    usize::try_from(id).ok().filter(|&cpu| cpu < sys::MAX_CPUS)
}

/// Chooses the area that all threads use.
pub(super) fn init() -> Mode {
    if let Some(libc) = sys::glibc_rseq() {
        // SAFETY: written once, by the thread that initialises; see the type.
        unsafe { *DELTA.0.get() = libc - own_offset() };
        if cpu().is_some() {
            return Mode::LibcRseq;
        }
    } else if register() {
        return Mode::OwnRseq;
    }
    Mode::PerThread
}

/// Registers this thread's own area unless that was tried before; true if it is registered.
pub(super) fn register() -> bool {
    let thread: usize;
    // SAFETY: the first word of the thread control block is its own address (System V ABI, "ELF Handling For
    // Thread-Local Storage").
    unsafe { asm!("mov {}, fs:[0]", out(reg) thread, options(nostack, preserves_flags, readonly, pure)) };
    let area = thread.wrapping_add_signed(offset()) as *mut u8;
    // SAFETY: in this mode `offset` leads to our own area of this thread: 64 bytes, aligned to 32, which go
    // only when the thread does. The word behind the kernel's part is ours.
    unsafe {
        let registration = area.offset(REGISTRATION).cast::<u32>();
        if *registration == 0 {
            *registration = if sys::register_rseq(NonNull::new_unchecked(area)) { 1 } else { 2 };
        }
        *registration == 1
    }
}
