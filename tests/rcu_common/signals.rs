//! Handlers, timers that interrupt one thread, and single steps.

use core::ffi::{c_int, c_void};

pub type Handler = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);

/// Has `handler` called for `signal`. Not while it runs itself, but while other handlers do.
pub fn handle(signal: c_int, handler: Handler) {
    // SAFETY: the structure is initialised before use, and the handler is of the type that SA_SIGINFO asks for.
    unsafe {
        let mut action: libc::sigaction = core::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
        assert_eq!(libc::sigaction(signal, &action, core::ptr::null_mut()), 0);
    }
}

/// A timer that sends `signal` to the thread that made it, for as long as it is there.
pub struct Timer(libc::timer_t);

impl Timer {
    pub fn every_nanos(nanos: i64, signal: c_int) -> Timer {
        // SAFETY: every structure is initialised before use.
        unsafe {
            let mut event: libc::sigevent = core::mem::zeroed();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = signal;
            event.sigev_notify_thread_id = libc::gettid();
            let mut timer: libc::timer_t = core::mem::zeroed();
            assert_eq!(libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer), 0);
            let every = libc::timespec { tv_sec: 0, tv_nsec: nanos };
            let times = libc::itimerspec { it_interval: every, it_value: every };
            assert_eq!(libc::timer_settime(timer, 0, &times, core::ptr::null_mut()), 0);
            Timer(timer)
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // SAFETY: made by `every_nanos`. A signal that is pending already may still come.
        unsafe { libc::timer_delete(self.0) };
    }
}

/// Sends a signal to a thread of this process; false if it is gone.
pub fn send(thread: libc::pid_t, signal: c_int) -> bool {
    // SAFETY: no memory is involved.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal) == 0 }
}

/// Runs `f` with a `SIGTRAP` after every instruction of this thread.
#[cfg(target_arch = "x86_64")]
pub fn step_through<R>(f: impl FnOnce() -> R) -> R {
    // SAFETY: the trap flag, bit 8, only has the processor raise a debug exception after each instruction, which
    // the kernel turns into the signal; the flags are otherwise as they were.
    unsafe { core::arch::asm!("pushfq", "or qword ptr [rsp], 0x100", "popfq") };
    let result = f();
    // SAFETY: as above.
    unsafe { core::arch::asm!("pushfq", "and qword ptr [rsp], ~0x100", "popfq") };
    result
}
