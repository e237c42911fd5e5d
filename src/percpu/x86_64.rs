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
//! What the table's entries are, and what orders sections with what other CPUs do, is said in `table.rs`. `aarch64.rs` has
//! the same functions with the same operands, written out again: a section is read, and proved, as one text.
//!
//! Deviations from the obvious, each measured (see `src/README.md`):
//! 1. The header's address is formed first and then used without index or displacement: such a store is
//!    forwarded to the next load at register speed, others at five cycles.
//! 2. `pop` does not prefetch the block below the one it takes: that would be two more instructions for everyone, a tenth of
//!    a pair. Of 100,000 blocks that are all allocated and then freed each takes a tenth less time with it, but what
//!    passes between threads up to a sixth more (`bulk` and `channel_bounded` in `benches/compare`), presumably since the
//!    line of a free block is fetched from under another processor that is at work on its neighbour.
//!    Nor the block it takes, for writing: whole programs took as long in the mean, a pair a twentieth more.
//! 3. An abort is a miss, not a retry: the slow path tries again, a bounded number of times. So a debugger
//!    can step through a program line by line, which aborts every section, and the program still proceeds.
//! 4. No field of the rseq area is written but `rseq_cs`, and that is not cleared on the way out: the kernel
//!    does so when it next looks. (Linux Documentation/userspace-api/rseq.rst.)

use core::arch::asm;

use super::area::offset;
pub(super) use super::area::{SECTIONS, adopt, register};
use super::region::{AboveFloor, FLOOR, RESERVE};
use super::table::{RESERVES, TABLE, Table, stopped, table};
#[cfg(feature = "debug")]
pub(super) use super::table::{is_running, stop_without_fence};
pub(super) use super::table::{start, start_reserves, stop, stop_reserves};
use crate::sys;

/// Where our own area lies, from the thread pointer.
#[inline(always)]
pub(super) fn own_offset() -> isize {
    let offset;
    // SAFETY: reads a constant, or a word of the global offset table.
    unsafe {
        asm!("mov {}, qword ptr [rip + __pcpalloc_0_1_rseq_area@GOTTPOFF]", out(reg) offset,
             options(nostack, preserves_flags, readonly, pure));
    }
    offset
}

/// The thread pointer.
#[inline(always)]
pub(super) fn thread_pointer() -> usize {
    let thread: usize;
    // SAFETY: the first word of the thread control block is its own address (System V ABI, "ELF Handling For
    // Thread-Local Storage").
    unsafe { asm!("mov {}, fs:[0]", out(reg) thread, options(nostack, preserves_flags, readonly, pure)) };
    thread
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

/// As [`pop`], on the slow path, which finds stacks that are hidden, too.
pub(super) fn pop_slow(class: usize) -> *mut u8 {
    pop_in(table(), class)
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

/// Takes the block on top of this CPU's stack, unless the stack would then hold less than its floor.
///
/// ```text
/// block = head.top[-1]
/// if block is 0: return it
/// if head.top <= floor: return refusal
/// head.top -= 1                          // commit
/// ```
pub(super) fn pop_above_floor(class: usize) -> AboveFloor {
    let table = table();
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
/// # Safety
/// `block` is a block of `class` that nobody uses.
#[inline(always)]
pub(super) unsafe fn push(class: usize, block: usize) -> bool {
    // SAFETY: the caller's obligation; a header's second word is its limit.
    unsafe { push_in::<8>(class, block) }
}

/// As [`push`], whether pushes are diverted or not.
///
/// # Safety
/// As for [`push`].
#[inline(always)]
pub(super) unsafe fn push_observed(class: usize, block: usize) -> bool {
    // SAFETY: the caller's obligation; the limit in force is beside the floor, in `STOPPED` too.
    unsafe { push_in::<{ FLOOR * 16 + 8 }>(class, block) }
}

/// ```text
/// if head.top >= head.limit: return false          // or floor.limit, the one in force: `observed.rs`
/// head.top[0] = block
/// head.top += 1                          // commit
/// ```
///
/// # Safety
/// As for [`push`]. `LIMIT` bytes behind a header is how far its stack may grow.
#[inline(always)]
unsafe fn push_in<const LIMIT: usize>(class: usize, block: usize) -> bool {
    let table = &TABLE;
    // SAFETY: as for `pop`; the entry written lies below the limit, so inside the array and above every entry
    // in use. `STOPPED` has its top at its limit, so it is never written.
    unsafe {
        asm!(
            enter!(),
            header!(),
            "mov {c}, qword ptr [{h}]
             cmp {c}, qword ptr [{h} + {limit}]
             jae {miss}
             mov qword ptr [{c}], {block}
             add {c}, 8
             mov qword ptr [{h}], {c}",
            leave!("jmp {miss}"),
            off = out(reg) _,
            table = in(reg) table.entries(),
            stopped = in(reg) stopped(class),
            block = in(reg) block,
            limit = const LIMIT,
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
    let table = table();
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
             .p2align 4
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
/// top = head.top
/// if top >= floor.limit: return 0        // the one in force: `observed.rs`
/// n = min(floor.limit - top, blocks.len())
/// top[0] = blocks[0]
/// for m from n - 2 down to 0 in steps of 2:
///     top[m..m + 2] = blocks[m..m + 2]   // where n is odd, all but the first
/// head.top = top + n                     // commit
/// ```
///
/// # Safety
/// All are blocks of `class` that nobody uses.
pub(super) unsafe fn push_batch(class: usize, blocks: &[usize]) -> usize {
    // SAFETY: the caller's obligation; the limit in force is beside the floor, in `STOPPED` too.
    unsafe { push_batch_in(table(), class, FLOOR * 16 + 8, blocks) }
}

/// As [`push_batch`], to a class's reserve.
///
/// # Safety
/// As for [`push_batch`].
pub(super) unsafe fn push_reserve(class: usize, blocks: &[usize]) -> usize {
    // SAFETY: the caller's obligation.
    unsafe { push_batch_in(&RESERVES, RESERVE + class, 8, blocks) }
}

/// `limit` is where the stack's limit lies, from its header.
///
/// # Safety
/// As for [`push_batch`].
unsafe fn push_batch_in(table: &Table, class: usize, limit: usize, blocks: &[usize]) -> usize {
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
             mov {t}, qword ptr [{h} + {limit}]
             sub {t}, {c}
             jbe 5f
             shr {t}, 3
             cmp {t}, {len}
             cmova {t}, {len}
             mov {n}, {t}
             mov {limit}, qword ptr [{blocks}]
             mov qword ptr [{c}], {limit}
             sub {t}, 2
             jb 8f
             .p2align 4
             7:
             movups {two}, xmmword ptr [{blocks} + 8*{t}]
             movups xmmword ptr [{c} + 8*{t}], {two}
             sub {t}, 2
             jae 7b
             8:
             lea {c}, [{c} + 8*{n}]
             mov qword ptr [{h}], {c}",
            leave!("xor {n:e}, {n:e}
                    jmp 5b"),
            off = out(reg) _,
            table = in(reg) table.entries(),
            stopped = in(reg) stopped(class),
            limit = inout(reg) limit => _,
            blocks = in(reg) blocks.as_ptr(),
            len = in(reg) blocks.len(),
            two = out(xmm_reg) _,
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
    stop_here_in(table(), cpu)
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
