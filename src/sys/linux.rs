//! The contract of [`crate::sys`] on Linux, through `nix` and `libc`.

use core::ffi::{CStr, c_int, c_void};
use core::num::NonZeroUsize;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicI32, AtomicU32, AtomicUsize, Ordering};

use nix::errno::Errno;
use nix::sys::mman::{self, MapFlags, MmapAdvise, ProtFlags};

use super::failures::{Call, refuses};
use super::ranges::{Range, Ranges};
use super::{addr, optional, round_up};

/// Runs `f` and puts `errno` back as it was: a program may look at `errno` after it has dropped a value.
pub(crate) fn keep_errno<R>(f: impl FnOnce() -> R) -> R {
    // SAFETY: `__errno_location` returns this thread's errno, which is valid for as long as the thread runs.
    unsafe {
        let errno = libc::__errno_location();
        let before = *errno;
        let result = f();
        *errno = before;
        result
    }
}

/// Bytes in a page of the operating system: 4, 16 or 64 KiB.
pub(crate) fn page_size() -> usize {
    static PAGE_SIZE: AtomicUsize = AtomicUsize::new(0);
    // Relaxed: every thread that finds 0 computes the same value, and nothing else depends on it.
    match PAGE_SIZE.load(Ordering::Relaxed) {
        0 => {
            // SAFETY: sysconf has no preconditions.
            let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) }.max(4096) as usize;
            PAGE_SIZE.store(size, Ordering::Relaxed);
            size
        }
        size => size,
    }
}

fn map_at(hint: usize, len: usize, prot: ProtFlags, extra: MapFlags) -> Option<NonNull<u8>> {
    if refuses(Call::Map) {
        return None;
    }
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_ANONYMOUS | MapFlags::MAP_NORESERVE | extra;
    let len = NonZeroUsize::new(len)?;
    // SAFETY: a new anonymous mapping; `extra` never holds MAP_FIXED, so no existing mapping is replaced.
    let mapped = keep_errno(|| unsafe { mman::mmap_anonymous(NonZeroUsize::new(hint), len, prot, flags) });
    mapped.ok().map(NonNull::cast)
}

/// Address space of `len` bytes aligned to `align` (a power of two), with no memory behind it.
///
/// Tried first by mapping `align` more than asked for and cutting off both ends; where that is refused
/// (`RLIMIT_AS`), by asking for aligned addresses near the place the kernel would have chosen.
pub(crate) fn reserve(len: usize, align: usize) -> Option<NonNull<u8>> {
    let none = ProtFlags::PROT_NONE;
    if let Some(wide) = map_at(0, len.checked_add(align)?, none, MapFlags::empty()) {
        let start = addr(wide);
        let head = round_up(start, align)? - start;
        // SAFETY: head <= align, so both cuts and what is kept between them lie inside the new mapping,
        // which nobody else knows of.
        unsafe {
            if head > 0 {
                unmap(wide, head);
            }
            if align > head {
                unmap(wide.add(head + len), align - head);
            }
            return Some(wide.add(head));
        }
    }
    let probe = map_at(0, len, none, MapFlags::empty())?;
    // SAFETY: the mapping was made on the line above and nobody else knows of it.
    unsafe { unmap(probe, len) };
    let mut hint = addr(probe) & !(align - 1);
    for _ in 0..64 {
        if hint == 0 {
            return None;
        }
        if let Some(found) = map_at(hint, len, none, MapFlags::MAP_FIXED_NOREPLACE) {
            if addr(found) == hint {
                return Some(found);
            }
            // SAFETY: as for `probe`; a kernel that does not know the flag took the address as a hint.
            unsafe { unmap(found, len) };
        }
        hint = hint.saturating_sub(align);
    }
    None
}

/// Makes reserved address space readable and writable; it reads as zero.
///
/// # Safety
/// The range lies in one reservation made by [`reserve`].
pub(crate) unsafe fn commit(start: NonNull<u8>, len: usize) -> bool {
    // SAFETY: the caller owns the range; giving it more rights invalidates no reference.
    !refuses(Call::Commit)
        && keep_errno(|| unsafe {
            mman::mprotect(start.cast(), len, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE).is_ok()
        })
}

/// New memory that reads as zero.
pub(crate) fn map(len: usize) -> Option<NonNull<u8>> {
    map_at(0, len, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::empty())
}

/// Gives address space back.
///
/// # Safety
/// The range came from this module and nothing points into it any more.
pub(crate) unsafe fn unmap(start: NonNull<u8>, len: usize) {
    // SAFETY: the caller's obligation.
    let unmapped = !refuses(Call::Unmap) && keep_errno(|| unsafe { mman::munmap(start.cast(), len).is_ok() });
    if !unmapped {
        // The limit on the number of mappings, where the range lies in the middle of one. Its address space stays as it is,
        // without the memory behind it.
        // SAFETY: nothing points into the range any more.
        unsafe { release(start, len) };
    }
}

/// Changes the length of a mapping, moving it if it must; the contents go along, what is new reads as zero.
///
/// # Safety
/// The range is a whole mapping made by [`map`]; after success the old address is not used again.
pub(crate) unsafe fn remap(start: NonNull<u8>, old: usize, new: usize) -> Option<NonNull<u8>> {
    if refuses(Call::Remap) {
        return None;
    }
    let flags = mman::MRemapFlags::MREMAP_MAYMOVE;
    // SAFETY: the caller's obligation; MREMAP_FIXED is not used, so no other mapping is replaced.
    keep_errno(|| unsafe { mman::mremap(start.cast(), old, new, flags, None) }).ok().map(NonNull::cast)
}

fn advise(start: NonNull<u8>, len: usize, advice: MmapAdvise) -> bool {
    // SAFETY: callers of this private function pass ranges of their own, and only advice under which
    // memory that is in use keeps its contents, or MADV_DONTNEED for memory that holds none.
    keep_errno(|| unsafe { mman::madvise(start.cast(), len, advice).is_ok() })
}

/// Gives the range memory now, in one call rather than one fault a page (Linux 5.14); a refusal is harmless.
///
/// # Safety
/// The range is committed and belongs to the caller.
pub(crate) unsafe fn populate(start: NonNull<u8>, len: usize) -> bool {
    !refuses(Call::Populate) && advise(start, len, MmapAdvise::MADV_POPULATE_WRITE)
}

/// As [`populate`], for memory that must not be waited for later: false if there is none. Where the kernel has no such call
/// the answer is yes, and pages get theirs by faults.
///
/// # Safety
/// As for [`populate`].
pub(crate) unsafe fn provide(start: NonNull<u8>, len: usize) -> bool {
    // SAFETY: the caller's obligation; contents stay.
    let call = || unsafe { mman::madvise(start.cast(), len, MmapAdvise::MADV_POPULATE_WRITE) };
    !refuses(Call::Populate) && keep_errno(call) != Err(Errno::ENOMEM)
}

/// Takes the memory behind the range away; it reads as zero afterwards.
///
/// # Safety
/// The range is committed, belongs to the caller, and nothing in it is still needed.
pub(crate) unsafe fn release(start: NonNull<u8>, len: usize) -> bool {
    !refuses(Call::Release) && advise(start, len, MmapAdvise::MADV_DONTNEED)
}

/// Names this process to calls that take a descriptor of one (Linux 6.14, uapi `pidfd.h`).
const PIDFD_SELF_PROCESS: c_int = -10001;

/// What is known of [`releases_at_once`]: 0 nothing, 1 no, 2 yes.
static AT_ONCE: AtomicU32 = AtomicU32::new(0);

/// Whether [`release_all`] takes one call for all ranges, and one fence of the other CPUs (Linux 6.14). The system is
/// asked the first time.
pub(crate) fn releases_at_once() -> bool {
    // Relaxed: whoever finds 0 gets the same answer.
    match AT_ONCE.load(Ordering::Relaxed) {
        0 => {
            let yes = release_ranges(&[]) == Some(0);
            AT_ONCE.store(1 + yes as u32, Ordering::Relaxed);
            yes
        }
        known => known == 2,
    }
}

/// Has [`releases_at_once`] answer no from now on, without asking.
pub(crate) fn release_one_by_one() {
    AT_ONCE.store(1, Ordering::Relaxed);
}

/// Takes the memory behind ranges away in one call; returns the bytes done.
fn release_ranges(ranges: &[Range]) -> Option<usize> {
    // SAFETY: the kernel reads as many ranges as are there, and takes memory from them that callers of this private
    // function need no more.
    let done = keep_errno(|| unsafe {
        let (at, len) = (ranges.as_ptr(), ranges.len());
        libc::syscall(libc::SYS_process_madvise, PIDFD_SELF_PROCESS, at, len, libc::MADV_DONTNEED, 0)
    });
    usize::try_from(done).ok()
}

/// Takes the memory behind all ranges away; they read as zero afterwards. If it returns false, some may.
///
/// # Safety
/// As for [`release`], of every range.
pub(crate) unsafe fn release_all<const N: usize>(ranges: &Ranges<N>) -> bool {
    if refuses(Call::Release) {
        return false;
    }
    (releases_at_once() && release_ranges(ranges.as_slice()) == Some(ranges.bytes()))
        || ranges.as_slice().iter().all(|range| {
            // What is added is not null.
            NonNull::new(range.start as *mut u8)
                .is_some_and(|start| advise(start, range.len, MmapAdvise::MADV_DONTNEED))
        })
}

/// Asks for huge pages in the range (`true`), or asks for none (`false`).
///
/// # Safety
/// The range is mapped and belongs to the caller.
pub(crate) unsafe fn advise_huge(start: NonNull<u8>, len: usize, huge: bool) -> bool {
    advise(start, len, if huge { MmapAdvise::MADV_HUGEPAGE } else { MmapAdvise::MADV_NOHUGEPAGE })
}

/// Whether the eight bytes at `start` can be read: the kernel is asked to take them for a set of signals, and to do
/// with it what no number stands for, so that it refuses in either case and says why.
pub(crate) fn is_readable(start: usize) -> bool {
    const NOTHING_KNOWN: c_int = -1;
    // No set at all would do, too.
    if start == 0 {
        return false;
    }
    keep_errno(|| {
        // SAFETY: the kernel reads eight bytes at `start` or says that it cannot; it writes nothing.
        let refused = unsafe {
            libc::syscall(libc::SYS_rt_sigprocmask, NOTHING_KNOWN, start as *const c_void, null_mut::<c_void>(), 8usize)
        };
        // SAFETY: errno is valid in every thread.
        refused == 0 || unsafe { *libc::__errno_location() } != libc::EFAULT
    })
}

const MEMBARRIER_QUERY: c_int = 0;
const MEMBARRIER_PRIVATE_EXPEDITED: c_int = 1 << 3;
const MEMBARRIER_REGISTER_PRIVATE_EXPEDITED: c_int = 1 << 4;
const MEMBARRIER_PRIVATE_EXPEDITED_RSEQ: c_int = 1 << 7;
const MEMBARRIER_REGISTER_PRIVATE_EXPEDITED_RSEQ: c_int = 1 << 8;
const MEMBARRIER_FLAG_CPU: c_int = 1;

fn membarrier(command: c_int, flags: c_int, cpu: c_int) -> c_int {
    // SAFETY: membarrier takes three integers and touches no memory of ours.
    keep_errno(|| unsafe { libc::syscall(libc::SYS_membarrier, command, flags, cpu) as c_int })
}

/// Registers the process for [`fence_cpu`]; false where the kernel (before 5.10) or a sandbox has none.
///
/// Costs 0.2 µs while the process has one thread, and 10 ms afterwards.
pub(crate) fn register_membarrier() -> bool {
    let known = membarrier(MEMBARRIER_QUERY, 0, 0);
    known > 0
        && known & MEMBARRIER_PRIVATE_EXPEDITED_RSEQ != 0
        && membarrier(MEMBARRIER_REGISTER_PRIVATE_EXPEDITED_RSEQ, 0, 0) == 0
}

/// Aborts every restartable sequence that is running on `cpu`, with a full barrier there and here.
///
/// When it returns true, no thread of the process is inside a section on `cpu` that began before the call.
pub(crate) fn fence_cpu(cpu: usize) -> bool {
    !refuses(Call::Fence) && membarrier(MEMBARRIER_PRIVATE_EXPEDITED_RSEQ, MEMBARRIER_FLAG_CPU, cpu as c_int) == 0
}

/// Registers the process for [`fence_process`]; false where it is missing (before 4.14, or a sandbox).
pub(crate) fn register_process_fence() -> bool {
    let known = membarrier(MEMBARRIER_QUERY, 0, 0);
    known > 0
        && known & MEMBARRIER_PRIVATE_EXPEDITED != 0
        && membarrier(MEMBARRIER_REGISTER_PRIVATE_EXPEDITED, 0, 0) == 0
}

/// A full barrier on every processor that runs a thread of this process, here included.
///
/// What a thread did before, in program order, is ordered before what this thread does afterwards, and the
/// other way round: whatever this thread did before, such a thread sees from there on.
pub(crate) fn fence_process() -> bool {
    !refuses(Call::ProcessFence) && membarrier(MEMBARRIER_PRIVATE_EXPEDITED, 0, 0) == 0
}

/// As [`futex_wait`], but at most for `timeout`.
pub(crate) fn futex_wait_for(word: &AtomicU32, expected: u32, timeout: core::time::Duration) {
    let flags = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
    let timeout = libc::timespec { tv_sec: timeout.as_secs() as _, tv_nsec: timeout.subsec_nanos() as _ };
    keep_errno(|| {
        // SAFETY: the word and the timeout are valid for the call.
        unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), flags, expected, &timeout) }
    });
}

/// Nanoseconds of a clock that never goes back, and is never 0.
pub(crate) fn monotonic_nanos() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is valid for the write; this clock is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// This thread's id, as the kernel counts them.
pub(crate) fn thread_id() -> u32 {
    // SAFETY: gettid has no preconditions.
    (unsafe { libc::syscall(libc::SYS_gettid) }) as u32
}

/// Waits while `word` holds `expected`; may return early.
pub(crate) fn futex_wait(word: &AtomicU32, expected: u32) {
    let flags = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
    keep_errno(|| {
        // SAFETY: the word is valid for the call, and a null timeout means none.
        unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), flags, expected, null_mut::<c_void>()) }
    });
}

/// Wakes one thread that waits on `word`.
pub(crate) fn futex_wake(word: &AtomicU32) {
    let flags = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: a wake only uses the address as a key.
    keep_errno(|| unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), flags, 1) });
}

/// The processor this thread runs on, by the kernel's word rather than rseq's.
pub(crate) fn current_cpu() -> usize {
    // SAFETY: sched_getcpu has no preconditions.
    keep_errno(|| unsafe { libc::sched_getcpu() }).max(0) as usize
}

/// The value of an environment variable, without a copy. `None` in a program that has rights which whoever started it has
/// not (set-user-ID): its environment is theirs.
pub(crate) fn environment(name: &CStr) -> Option<&'static CStr> {
    // SAFETY: the name is a C string. The result points into the environment; it is read at once, at the
    // first allocation of the process, before the program had a chance to change its environment. `getauxval` has no
    // preconditions.
    unsafe {
        if libc::getauxval(libc::AT_SECURE) != 0 {
            return None;
        }
        let value = libc::getenv(name.as_ptr());
        (!value.is_null()).then(|| CStr::from_ptr(value))
    }
}

/// Runs `f` with every signal of this thread blocked, which a thread made meanwhile inherits.
pub(crate) fn with_signals_blocked<R>(f: impl FnOnce() -> R) -> R {
    // SAFETY: both sets are initialised before use; the mask is put back.
    unsafe {
        let (mut all, mut before): (libc::sigset_t, libc::sigset_t) = (core::mem::zeroed(), core::mem::zeroed());
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
        let result = f();
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, null_mut());
        result
    }
}

/// What glibc takes of a thread's stack for itself: the thread-local storage of all that is loaded lies there, however
/// much that is. Elsewhere it is added without our doing.
fn least_stack(attributes: &libc::pthread_attr_t) -> usize {
    type LeastStack = unsafe extern "C" fn(*const libc::pthread_attr_t) -> usize;
    let found = optional!("__pthread_get_minstack");
    // SAFETY: what glibc has by this name is a function of this type, which the standard library calls as well; it
    // reads the attributes.
    unsafe { core::mem::transmute::<*mut c_void, Option<LeastStack>>(found).map_or(0, |least| least(attributes)) }
}

/// Starts a thread that runs `body`, on a small stack and with all signals blocked; false if none is to be had.
///
/// Unlike `std`'s it allocates nothing from the allocator above, so any slow path may call this.
pub(crate) fn spawn(name: &'static CStr, body: extern "C" fn()) -> bool {
    extern "C" fn enter(body: *mut c_void) -> *mut c_void {
        // SAFETY: `spawn` passed a function of this type.
        let body: extern "C" fn() = unsafe { core::mem::transmute(body) };
        body();
        null_mut()
    }
    const STACK: usize = 64 << 10;
    if refuses(Call::Spawn) {
        return false;
    }
    // SAFETY: every object is initialised before use and lives through the calls; the signal mask is put back,
    // and the new thread inherits the full one.
    keep_errno(|| unsafe {
        let (mut all, mut before): (libc::sigset_t, libc::sigset_t) = (core::mem::zeroed(), core::mem::zeroed());
        let mut attributes: libc::pthread_attr_t = core::mem::zeroed();
        let mut thread: libc::pthread_t = core::mem::zeroed();
        if libc::pthread_attr_init(&mut attributes) != 0 {
            return false;
        }
        libc::pthread_attr_setstacksize(&mut attributes, STACK + least_stack(&attributes));
        libc::pthread_attr_setdetachstate(&mut attributes, libc::PTHREAD_CREATE_DETACHED);
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
        let made = libc::pthread_create(&mut thread, &attributes, enter, body as *mut c_void) == 0;
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, null_mut());
        libc::pthread_attr_destroy(&mut attributes);
        if made {
            libc::pthread_setname_np(thread, name.as_ptr());
        }
        made
    })
}

/// Has a function called when the process exits in an orderly way.
pub(crate) fn at_exit(f: extern "C" fn()) -> bool {
    // SAFETY: the function is never unloaded (`stay_loaded`).
    unsafe { libc::atexit(f) == 0 }
}

/// Runs the three functions around every `fork`, as `pthread_atfork` does.
pub(crate) fn at_fork(prepare: extern "C" fn(), parent: extern "C" fn(), child: extern "C" fn()) -> bool {
    // SAFETY: the functions are static and take no argument.
    unsafe { libc::pthread_atfork(Some(prepare), Some(parent), Some(child)) == 0 }
}

/// Keeps the shared library that this code is part of, if it is part of one, where it is for ever.
///
/// Between two of our sections the kernel remembers the last one's descriptor, and reads it when it next preempts
/// the thread; if its memory is gone by then, the process ends. Nor do threads forget our destructor.
pub(crate) fn stay_loaded() {
    // SAFETY: `Dl_info` is valid when zero, and valid for the write; the name it then holds is a C string. The library
    // is loaded, so opening it runs nothing.
    unsafe {
        let mut found: libc::Dl_info = core::mem::zeroed();
        let here = stay_loaded as fn() as *const c_void;
        if libc::dladdr(here, &mut found) == 0 || found.dli_fname.is_null() {
            return;
        }
        // The program itself stays anyway. Its headers lie in its first page.
        let headers = libc::getauxval(libc::AT_PHDR) as usize;
        if headers.wrapping_sub(found.dli_fbase as usize) < 4096 {
            return;
        }
        // So does a library that was there before the program, whose `malloc` everybody has. Nor may it be opened now:
        // the dynamic linker itself may be the caller, in the middle of another.
        #[cfg(feature = "capi")]
        if super::c_library::malloc_is_in(found.dli_fbase) {
            return;
        }
        keep_errno(|| libc::dlopen(found.dli_fname, libc::RTLD_LAZY | libc::RTLD_NOLOAD | libc::RTLD_NODELETE));
    }
}

/// A destructor that runs when a thread ends which has called [`ThreadExit::arm`].
pub(crate) struct ThreadExit {
    key: AtomicU32,
}

impl ThreadExit {
    const NONE: u32 = u32::MAX;

    pub(crate) const fn new() -> Self {
        ThreadExit { key: AtomicU32::new(Self::NONE) }
    }

    /// Creates the key; called once, while the process initialises the heap.
    pub(crate) fn create(&self, destructor: unsafe extern "C" fn(*mut c_void)) -> bool {
        let mut key: libc::pthread_key_t = 0;
        // SAFETY: `key` is valid for the write.
        let created = unsafe { libc::pthread_key_create(&mut key, Some(destructor)) } == 0;
        if created {
            // Release, paired with the acquire in `arm`: a thread that sees the key may use it.
            self.key.store(key, Ordering::Release);
        }
        created
    }

    /// Whether there is a key, so that [`ThreadExit::arm`] fails for want of memory only.
    pub(crate) fn is_possible(&self) -> bool {
        // Relaxed: the value is the whole of what is asked.
        self.key.load(Ordering::Relaxed) != Self::NONE
    }

    /// Has the destructor called with `value`, not null, when this thread ends.
    pub(crate) fn arm(&self, value: *mut c_void) -> bool {
        match self.key.load(Ordering::Acquire) {
            Self::NONE => false,
            // SAFETY: the key was created by `create` and is never deleted.
            key => !refuses(Call::ThreadExit) && unsafe { libc::pthread_setspecific(key, value) == 0 },
        }
    }
}

/// A file of pressure stall information that has been told when to speak up (Linux 4.20; 6.5 without privileges). One
/// thread makes them.
pub(crate) struct Trigger {
    file: c_int,
}

/// The latest trigger's descriptor, -1 if it has gone. Relaxed: its thread writes it, and the child of a `fork` reads it.
static TRIGGER: AtomicI32 = AtomicI32::new(-1);

impl Trigger {
    /// `when`, as the kernel's `accounting/psi.rst` has it, ends with a byte of 0; `None` if it is refused.
    pub(crate) fn new(path: &CStr, when: &[u8]) -> Option<Trigger> {
        // SAFETY: the path is a C string and the buffer valid for its length. The descriptor, if there is one, is
        // this value's alone from its making.
        keep_errno(|| unsafe {
            let file = libc::open(path.as_ptr(), libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC);
            let trigger = (file >= 0).then_some(Trigger { file })?;
            TRIGGER.store(file, Ordering::Relaxed);
            (libc::write(file, when.as_ptr().cast(), when.len()) == when.len() as isize).then_some(trigger)
        })
    }

    /// In the child of a `fork`, which has the descriptor of a trigger and not the thread whose it is: closes it.
    pub(crate) fn after_fork() {
        let file = TRIGGER.swap(-1, Ordering::Relaxed);
        if file >= 0 {
            drop(Trigger { file });
        }
    }

    /// Waits for the trigger, but not longer than `time`: whether it went off. `None` if it never will again.
    pub(crate) fn wait(&self, time: core::time::Duration) -> Option<bool> {
        let mut poll = libc::pollfd { fd: self.file, events: libc::POLLPRI, revents: 0 };
        // SAFETY: one descriptor, valid for the call.
        let ready = keep_errno(|| unsafe { libc::poll(&mut poll, 1, time.as_millis() as c_int) });
        if ready > 0 && poll.revents & (libc::POLLERR | libc::POLLNVAL) != 0 {
            return None;
        }
        Some(ready > 0 && poll.revents & libc::POLLPRI != 0)
    }
}

impl Drop for Trigger {
    fn drop(&mut self) {
        // First, so that a child of a `fork` does not close what has this number by then.
        let _ = TRIGGER.compare_exchange(self.file, -1, Ordering::Relaxed, Ordering::Relaxed);
        // SAFETY: the descriptor is this value's own.
        keep_errno(|| unsafe { libc::close(self.file) });
    }
}

/// Writes the line to standard error.
pub(crate) fn report(line: &[u8]) {
    // SAFETY: the buffer is valid. What cannot be written is lost.
    keep_errno(|| unsafe { libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len()) });
}

/// Writes the line to standard error and aborts.
pub(crate) fn abort_with(line: &[u8]) -> ! {
    // SAFETY: the buffer is valid; a failure to write changes nothing, since the process ends either way.
    unsafe {
        libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len());
        libc::abort()
    }
}

/// Bytes of the range that have memory behind them.
pub(crate) fn resident_bytes(start: NonNull<u8>, len: usize) -> usize {
    let page = page_size();
    let mut seen = [0u8; 512];
    let (mut at, end) = (addr(start) & !(page - 1), addr(start) + len);
    let mut pages = 0;
    while at < end {
        let count = (end - at).div_ceil(page).min(seen.len());
        // SAFETY: mincore reads no memory of the range; `seen` has a byte for each page asked about.
        let known = keep_errno(|| unsafe { libc::mincore(at as *mut c_void, count * page, seen.as_mut_ptr()) == 0 });
        if known {
            pages += seen[..count].iter().filter(|&&byte| byte & 1 != 0).count();
        }
        at += count * page;
    }
    pages * page
}
