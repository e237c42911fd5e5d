//! Walking the stack of the calling thread, inside an allocation: nothing here allocates, locks or fails.

use core::cell::Cell;
use core::ffi::c_void;
use core::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use crate::sys;

/// Most frames of a stack; those of the allocator are among them.
pub(super) const FRAMES_MAX: usize = 128;

/// How stacks are walked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
#[repr(u8)]
pub enum Unwinder {
    /// By the unwind tables that every Rust program has: some microseconds a stack. (What walks them is the C compiler's
    /// runtime library, as in a panic; it allocates at most the first time, which is when profiling starts.)
    #[default]
    Tables,
    /// By frame pointers: some hundred nanoseconds a stack, in a program of which all of it was compiled with them
    /// (`-C force-frame-pointers=yes`). Elsewhere stacks end early. On x86-64 and aarch64.
    FramePointers,
}

/// Relaxed, both: each stands for itself.
static UNWINDER: AtomicU8 = AtomicU8::new(Unwinder::Tables as u8);
static DEPTH: AtomicUsize = AtomicUsize::new(64);

std::thread_local! {
    /// The thread is walking its stack. Constant and without a destructor, so that touching it allocates nothing.
    static WALKING: Cell<bool> = const { Cell::new(false) };
}

pub(super) fn configure(unwinder: Unwinder, depth: usize) {
    UNWINDER.store(unwinder as u8, Ordering::Relaxed);
    DEPTH.store(depth.clamp(1, FRAMES_MAX), Ordering::Relaxed);
}

/// Runs `f`, unless this thread is in it already.
pub(super) fn guarded<R>(f: impl FnOnce() -> R) -> Option<R> {
    if WALKING.replace(true) {
        return None;
    }
    let result = f();
    WALKING.set(false);
    Some(result)
}

/// Return addresses from the innermost frame outwards; how many.
pub(super) fn walk(out: &mut [usize; FRAMES_MAX]) -> usize {
    let depth = DEPTH.load(Ordering::Relaxed);
    if UNWINDER.load(Ordering::Relaxed) == Unwinder::FramePointers as u8 {
        return walk_frame_pointers(&mut out[..depth]);
    }
    let mut len = 0;
    let each = |frame: &backtrace::Frame| {
        let ip: *mut c_void = frame.ip();
        if ip.is_null() || len == depth {
            return false;
        }
        out[len] = ip as usize;
        len += 1;
        true
    };
    // SAFETY: what must be synchronised is the debugging library of Windows.
    unsafe { backtrace::trace_unsynchronized(each) };
    len
}

/// The chain of frames: at the frame pointer lies the caller's, and above it the address to which it returns.
///
/// Code without frame pointers leaves anything in the register, so nothing is believed: the chain goes upwards, in words,
/// by less than a MiB a step, and a page is asked for before it is read.
fn walk_frame_pointers(out: &mut [usize]) -> usize {
    let Some(mut frame) = frame_pointer() else { return 0 };
    let here = &raw const frame as usize;
    if frame < here || frame - here > 1 << 20 {
        return 0;
    }
    let (mut len, mut readable) = (0, here | 0xfff);
    while len < out.len() {
        if !frame.is_multiple_of(8) {
            break;
        }
        // The page of the last byte of the two words; those before have been asked for.
        let last = frame + 15;
        if last > readable {
            if !sys::is_readable(last & !0xfff) || (frame > readable && !sys::is_readable(frame & !0xfff)) {
                break;
            }
            readable = last | 0xfff;
        }
        // SAFETY: both words lie in pages that can be read: of this stack, on which nothing is written meanwhile, or of
        // whatever the register led to, which is then read as a number.
        let (next, address) = unsafe {
            let words = frame as *const usize;
            (words.read_volatile(), words.add(1).read_volatile())
        };
        if address < 4096 {
            break;
        }
        out[len] = address;
        len += 1;
        if next <= frame || next - frame > 1 << 20 {
            break;
        }
        frame = next;
    }
    len
}

#[inline(always)]
fn frame_pointer() -> Option<usize> {
    let frame: usize;
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: reads a register.
    unsafe {
        core::arch::asm!("mov {}, rbp", out(reg) frame, options(nomem, nostack, preserves_flags))
    };
    #[cfg(all(target_arch = "aarch64", not(miri)))]
    // SAFETY: reads a register.
    unsafe {
        core::arch::asm!("mov {}, x29", out(reg) frame, options(nomem, nostack, preserves_flags))
    };
    #[cfg(not(all(any(target_arch = "x86_64", target_arch = "aarch64"), not(miri))))]
    {
        frame = 0;
    }
    (frame != 0).then_some(frame)
}

/// Has the unwinder do what it does the first time.
pub(super) fn warm_up() {
    guarded(|| walk(&mut [0; FRAMES_MAX]));
}
