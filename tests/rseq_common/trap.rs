//! A breakpoint on one instruction, once: whoever comes there is interrupted by a signal before it is executed.

use core::ffi::{c_int, c_void};
use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::arch::{BEHIND_BREAKPOINT, BREAKPOINT, Unit, goes_on_at, publish};
use super::make_writable;

/// Where the breakpoint is, what it replaced, what to do there. One thread at a time uses this.
static AT: AtomicUsize = AtomicUsize::new(0);
static REPLACED: Unit = Unit::new(0);
static CAME: AtomicUsize = AtomicUsize::new(0);
static RESUMES_AT: AtomicUsize = AtomicUsize::new(0);
static IN_USE: AtomicBool = AtomicBool::new(false);
/// Where the breakpoint goes when it has been come to, once.
static NEXT: AtomicUsize = AtomicUsize::new(0);
static HANDLER: Handler = Handler(UnsafeCell::new(None));

struct Handler(UnsafeCell<Option<*mut dyn FnMut()>>);
// SAFETY: used by the thread that has set `IN_USE`, and by the handler on that thread.
unsafe impl Sync for Handler {}

fn code(at: usize) -> &'static Unit {
    // SAFETY: code of this program, made writable by `interrupt`, aligned as instructions are.
    unsafe { Unit::from_ptr(at as *mut _) }
}

fn set(at: usize) {
    AT.store(at, Ordering::Relaxed);
    REPLACED.store(code(at).load(Ordering::Relaxed), Ordering::Relaxed);
    code(at).store(BREAKPOINT, Ordering::SeqCst);
    publish(at, size_of::<Unit>());
}

fn restore(at: usize) {
    code(at).store(REPLACED.load(Ordering::Relaxed), Ordering::SeqCst);
    publish(at, size_of::<Unit>());
}

extern "C" fn on_trap(_: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a `ucontext_t` to a handler with SA_SIGINFO.
    let resume = goes_on_at(unsafe { &mut *context.cast::<libc::ucontext_t>() });
    let at = AT.load(Ordering::Relaxed);
    restore(at);
    // The breakpoint has been executed. Where the kernel took that for a section that goes on, so does it.
    if *resume as usize == at + BEHIND_BREAKPOINT {
        *resume = at as _;
    }
    let next = NEXT.swap(0, Ordering::Relaxed);
    if next != 0 {
        return set(next);
    }
    RESUMES_AT.store(*resume as usize, Ordering::Relaxed);
    CAME.fetch_add(1, Ordering::Relaxed);
    // SAFETY: set by `interrupt`, which is on the stack below.
    if let Some(handler) = unsafe { (*HANDLER.0.get()).take() } {
        // SAFETY: as above; it lives until `interrupt` returns.
        unsafe { (*handler)() };
    }
}

/// How an operation was interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupted {
    /// It never came to the instruction.
    Not,
    /// It went on there.
    GoesOn,
    /// It goes on at this other address.
    At(usize),
}

/// Runs `operation`, with `handler` in a signal handler before the instruction at `at` when it first comes there.
pub fn interrupt<R>(at: usize, handler: &mut dyn FnMut(), operation: impl FnOnce() -> R) -> (R, Interrupted) {
    interrupt_after(None, at, handler, operation)
}

/// The same for an operation that is interrupted at `first`, too, before that, for nothing but the abort.
pub fn interrupt_after<R>(
    first: Option<usize>,
    at: usize,
    handler: &mut dyn FnMut(),
    operation: impl FnOnce() -> R,
) -> (R, Interrupted) {
    assert!(!IN_USE.swap(true, Ordering::Acquire), "one at a time");
    static INSTALL: std::sync::Once = std::sync::Once::new();
    // SAFETY: the structure is initialised before use, and the handler is of the type that SA_SIGINFO asks for.
    INSTALL.call_once(|| unsafe {
        let mut action: libc::sigaction = core::mem::zeroed();
        action.sa_sigaction = on_trap as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
        assert_eq!(libc::sigaction(libc::SIGTRAP, &action, core::ptr::null_mut()), 0);
    });
    make_writable(at, size_of::<Unit>());
    make_writable(first.unwrap_or(at), size_of::<Unit>());
    // SAFETY: the handler is called before this function returns, or not at all: the lifetime is not exceeded.
    let handler: *mut (dyn FnMut() + 'static) = unsafe { core::mem::transmute(handler as *mut dyn FnMut()) };
    // SAFETY: `IN_USE` makes this the only use.
    unsafe { *HANDLER.0.get() = Some(handler) };
    CAME.store(0, Ordering::Relaxed);
    NEXT.store(first.map_or(0, |_| at), Ordering::Relaxed);
    set(first.unwrap_or(at));
    let result = operation();
    restore(AT.load(Ordering::Relaxed));
    // SAFETY: as above.
    unsafe { *HANDLER.0.get() = None };
    let resumed = RESUMES_AT.load(Ordering::Relaxed);
    let interrupted = match CAME.load(Ordering::Relaxed) {
        0 => Interrupted::Not,
        _ if resumed == at => Interrupted::GoesOn,
        _ => Interrupted::At(resumed),
    };
    IN_USE.store(false, Ordering::Release);
    (result, interrupted)
}
