//! Bad accesses, and where the program is: signals, stacks, lines of files.

use core::cell::UnsafeCell;
use core::ffi::{CStr, c_int, c_void};
use core::ptr::null_mut;
use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use super::keep_errno;

unsafe extern "C" {
    // The unwinder of the C runtime, which every Rust program is linked to. (Itanium C++ ABI, exception handling, §1.)
    fn _Unwind_Backtrace(step: extern "C" fn(*mut c_void, *mut c_void) -> c_int, state: *mut c_void) -> c_int;
    fn _Unwind_GetIP(context: *mut c_void) -> usize;
}

/// Fills `frames` with the places that called each other, the innermost first; returns how many there are.
pub(crate) fn stack_trace(frames: &mut [usize]) -> usize {
    struct State<'a> {
        frames: &'a mut [usize],
        len: usize,
    }
    extern "C" fn step(context: *mut c_void, state: *mut c_void) -> c_int {
        const GO_ON: c_int = 0;
        const END: c_int = 5;
        // SAFETY: the unwinder passes on the state below and a context of its own.
        let (state, at) = unsafe { (&mut *state.cast::<State>(), _Unwind_GetIP(context)) };
        match state.frames.get_mut(state.len) {
            Some(frame) if at != 0 => {
                *frame = at;
                state.len += 1;
                GO_ON
            }
            _ => END,
        }
    }
    let mut state = State { frames, len: 0 };
    // SAFETY: the state lives through the call, and nothing else refers to it meanwhile.
    keep_errno(|| unsafe { _Unwind_Backtrace(step, (&raw mut state).cast()) });
    state.len
}

/// An access that was refused.
pub(crate) struct Fault {
    /// What was accessed.
    pub(crate) address: usize,
    /// The instruction; 0 if it is not known.
    pub(crate) at: usize,
    /// Whether it wrote; `None` if that is not known.
    pub(crate) wrote: Option<bool>,
}

static HANDLER: AtomicPtr<()> = AtomicPtr::new(null_mut());
static BEFORE: Before = Before(UnsafeCell::new(None));

/// What was to be done about a bad access before [`on_fault`].
struct Before(UnsafeCell<Option<libc::sigaction>>);
// SAFETY: written once, before the handler that reads it is installed.
unsafe impl Sync for Before {}

/// Whether anybody handles bad accesses.
pub(crate) fn has_fault_handler() -> bool {
    // SAFETY: the structure is valid when zero, and for the write.
    keep_errno(|| unsafe {
        let mut action: libc::sigaction = core::mem::zeroed();
        libc::sigaction(libc::SIGSEGV, core::ptr::null(), &mut action) == 0 && action.sa_sigaction != libc::SIG_DFL
    })
}

/// Has `handler` called, in the context of a signal, on every access to memory that is refused. Whatever was to be done
/// then before is done afterwards. Called once.
pub(crate) fn on_fault(handler: fn(&Fault)) -> bool {
    HANDLER.store(handler as *mut (), Ordering::Release);
    // SAFETY: both structures are valid when zero; what was there is kept before the new one is in force.
    keep_errno(|| unsafe {
        let mut before: libc::sigaction = core::mem::zeroed();
        if libc::sigaction(libc::SIGSEGV, core::ptr::null(), &mut before) != 0 {
            return false;
        }
        *BEFORE.0.get() = Some(before);
        let mut action: libc::sigaction = core::mem::zeroed();
        action.sa_sigaction = enter as *const () as usize;
        action.sa_mask = before.sa_mask;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | before.sa_flags & (libc::SA_NODEFER | libc::SA_RESTART);
        libc::sigaction(libc::SIGSEGV, &action, null_mut()) == 0
    })
}

unsafe extern "C" fn enter(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // Acquire, paired with the release in `on_fault`.
    let handler = HANDLER.load(Ordering::Acquire);
    // SAFETY: the kernel passes both for SIGSEGV; the handler was stored as such; what was before was kept before.
    unsafe {
        // By the kernel (a positive code), and not by `kill`.
        if !handler.is_null() && (*info).si_code > 0 {
            let handler: fn(&Fault) = core::mem::transmute(handler);
            let (at, wrote) = place(context);
            keep_errno(|| handler(&Fault { address: (*info).si_addr() as usize, at, wrote }));
        }
        let before = (*BEFORE.0.get()).as_ref();
        let by_a_program = (*info).si_code <= 0;
        match before.map_or(libc::SIG_DFL, |before| before.sa_sigaction) {
            libc::SIG_IGN if by_a_program => {}
            // The access is tried again, and nobody stands in the way. What a program sent comes but once, so it is sent
            // again: it waits until this handler has returned.
            libc::SIG_DFL | libc::SIG_IGN => {
                stand_aside(signal);
                if by_a_program {
                    libc::raise(signal);
                }
            }
            function => {
                let flags = before.map_or(0, |before| before.sa_flags);
                if flags & libc::SA_RESETHAND != 0 {
                    // It asked to be called once, and to have nobody in the way when the access is tried again.
                    stand_aside(signal);
                }
                if flags & libc::SA_SIGINFO != 0 {
                    let function: unsafe extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) =
                        core::mem::transmute(function);
                    function(signal, info, context);
                } else {
                    let function: unsafe extern "C" fn(c_int) = core::mem::transmute(function);
                    function(signal);
                }
            }
        }
    }
}

/// Has the system do with a signal what it does by itself. (A function, so that its room is not on the stack of a report.)
#[inline(never)]
fn stand_aside(signal: c_int) {
    // SAFETY: the structure is valid when zero, and what it then says is the default.
    unsafe {
        let mut action: libc::sigaction = core::mem::zeroed();
        action.sa_sigaction = libc::SIG_DFL;
        libc::sigaction(signal, &action, null_mut());
    }
}

/// Where a signal interrupted the program, and what the processor says of the access.
///
/// # Safety
/// `context` is what the kernel passed.
#[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), allow(unused_variables))]
unsafe fn place(context: *mut c_void) -> (usize, Option<bool>) {
    #[cfg(target_arch = "x86_64")]
    {
        // Bit 1 of a page fault's error code: a write. (Intel SDM 3A, §4.7.)
        const WROTE: i64 = 2;
        // SAFETY: the caller's obligation.
        let registers = unsafe { &(*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
        let error = registers[libc::REG_ERR as usize];
        (registers[libc::REG_RIP as usize] as usize, Some(error & WROTE != 0))
    }
    #[cfg(target_arch = "aarch64")]
    {
        // SAFETY: the caller's obligation.
        (unsafe { (*context.cast::<libc::ucontext_t>()).uc_mcontext.pc as usize }, None)
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    (0, None)
}

/// Room for a part of a file, and for a line of it.
pub(crate) struct FileRoom {
    chunk: [u8; 512],
    line: [u8; 512],
}

impl FileRoom {
    pub(crate) const fn new() -> FileRoom {
        FileRoom { chunk: [0; 512], line: [0; 512] }
    }

    /// Calls `each` with every line of a file, of which the first 512 bytes, until it returns false. May be called in
    /// the handler of a signal.
    pub(crate) fn each_line_of(&mut self, path: &CStr, mut each: impl FnMut(&[u8]) -> bool) {
        keep_errno(|| {
            // SAFETY: the path is a C string.
            let file = unsafe { libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
            if file < 0 {
                return;
            }
            let (chunk, line, mut len) = (&mut self.chunk, &mut self.line, 0);
            'file: loop {
                // SAFETY: the buffer is valid for its length.
                let got = unsafe { libc::read(file, chunk.as_mut_ptr().cast(), chunk.len()) };
                if got <= 0 {
                    break;
                }
                for &byte in &chunk[..got as usize] {
                    if byte == b'\n' {
                        if !each(&line[..len]) {
                            break 'file;
                        }
                        len = 0;
                    } else if len < line.len() {
                        line[len] = byte;
                        len += 1;
                    }
                }
            }
            // SAFETY: opened above.
            unsafe { libc::close(file) };
        });
    }
}

/// Waits a little; in the handler of a signal, too.
pub(crate) fn pause() {
    let time = libc::timespec { tv_sec: 0, tv_nsec: 10_000_000 };
    // SAFETY: the time is valid for the call, and nothing is wanted of what is left of it.
    keep_errno(|| unsafe { libc::nanosleep(&time, null_mut()) });
}

/// Whether a thread may report, and the room for it, which signal stacks have little of; others wait until it has.
pub(crate) struct Turn<T> {
    taken: AtomicBool,
    room: UnsafeCell<T>,
}

// SAFETY: the room is used by whoever has the turn, one thread at a time.
unsafe impl<T: Send> Sync for Turn<T> {}

impl<T> Turn<T> {
    pub(crate) const fn new(room: T) -> Turn<T> {
        Turn { taken: AtomicBool::new(false), room: UnsafeCell::new(room) }
    }

    /// Runs `f` while nobody else does. A thread that comes here again from within, or waits for more than two seconds,
    /// goes without.
    pub(crate) fn take(&self, f: impl FnOnce(&mut T)) {
        for _ in 0..200 {
            // Acquire and Release, paired with each other: reports do not mix.
            if !self.taken.swap(true, Ordering::Acquire) {
                // SAFETY: `taken` was false, so nobody else has the room until it is false again.
                f(unsafe { &mut *self.room.get() });
                return self.taken.store(false, Ordering::Release);
            }
            pause();
        }
    }
}
