//! The contract of [`crate::sys`] without a single system call of our own: memory from `std`'s `System`.
//!
//! One processor, one node, no rseq, so every thread has stacks of its own. Reservations are given their
//! memory at once, zeroed; giving memory back zeroes it, which is what the layers above may rely on.

use core::ffi::c_void;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};
use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::HashMap;
use std::sync::Mutex;

pub(crate) const MAX_CPUS: usize = 64;
pub(crate) const MAX_NODES: usize = 1;

/// Layouts of everything handed out, by address: `System` wants them back.
static BLOCKS: Mutex<Option<HashMap<usize, Layout>>> = Mutex::new(None);

/// Counts down to a refusal: `u32::MAX` means never. Tests set it to see what the layers above do.
pub(crate) static REFUSE_AFTER: AtomicU32 = AtomicU32::new(u32::MAX);

fn refused() -> bool {
    // Relaxed: a test knob, read and written for its value alone.
    REFUSE_AFTER
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n != u32::MAX && n > 0).then(|| n - 1))
        .is_err_and(|n| n == 0)
}

pub(crate) fn page_size() -> usize {
    4096
}

pub(crate) fn reserve(len: usize, align: usize) -> Option<NonNull<u8>> {
    if refused() {
        return None;
    }
    let layout = Layout::from_size_align(len, align).ok()?;
    // SAFETY: the layout's size is not zero, by the common precondition.
    let block = NonNull::new(unsafe { System.alloc_zeroed(layout) })?;
    let mut blocks = BLOCKS.lock().unwrap();
    blocks.get_or_insert_with(HashMap::new).insert(super::addr(block), layout);
    Some(block)
}

pub(crate) unsafe fn commit(_start: NonNull<u8>, _len: usize) -> bool {
    !refused()
}

pub(crate) fn map(len: usize) -> Option<NonNull<u8>> {
    reserve(len, page_size())
}

pub(crate) unsafe fn unmap(start: NonNull<u8>, _len: usize) {
    let layout = BLOCKS.lock().unwrap().as_mut().and_then(|b| b.remove(&super::addr(start)));
    if let Some(layout) = layout {
        // SAFETY: the block came from System with this layout, and the caller gives it up.
        unsafe { System.dealloc(start.as_ptr(), layout) };
    }
}

pub(crate) unsafe fn remap(start: NonNull<u8>, old: usize, new: usize) -> Option<NonNull<u8>> {
    let moved = map(new)?;
    // SAFETY: both blocks are valid for the shorter length and do not overlap; the caller gives up the old one.
    unsafe {
        core::ptr::copy_nonoverlapping(start.as_ptr(), moved.as_ptr(), old.min(new));
        unmap(start, old);
    }
    Some(moved)
}

pub(crate) unsafe fn populate(_start: NonNull<u8>, _len: usize) -> bool {
    true
}

pub(crate) unsafe fn provide(_start: NonNull<u8>, _len: usize) -> bool {
    true
}

pub(crate) unsafe fn release(start: NonNull<u8>, len: usize) -> bool {
    // SAFETY: the range belongs to the caller, who needs nothing in it any more.
    unsafe { core::ptr::write_bytes(start.as_ptr(), 0, len) };
    true
}

pub(crate) unsafe fn release_all<const N: usize>(ranges: &super::Ranges<N>) -> bool {
    for range in ranges.as_slice() {
        // SAFETY: the caller's obligation, as in `release`.
        unsafe { core::ptr::write_bytes(range.start as *mut u8, 0, range.len) };
    }
    true
}

pub(crate) fn releases_at_once() -> bool {
    true
}

pub(crate) fn release_one_by_one() {}

pub(crate) unsafe fn advise_huge(_start: NonNull<u8>, _len: usize, _huge: bool) -> bool {
    true
}

pub(crate) unsafe fn forbid(_start: NonNull<u8>, _len: usize) -> bool {
    false
}

pub(crate) unsafe fn permit(_start: NonNull<u8>, _len: usize) -> bool {
    true
}

pub(crate) fn stack_trace(_frames: &mut [usize]) -> usize {
    0
}

/// As `fault.rs` has it; here there is none.
#[allow(dead_code)]
pub(crate) struct Fault {
    pub(crate) address: usize,
    pub(crate) at: usize,
    pub(crate) wrote: Option<bool>,
}

pub(crate) fn has_fault_handler() -> bool {
    false
}

pub(crate) fn on_fault(_handler: fn(&Fault)) -> bool {
    false
}

pub(crate) struct FileRoom;

impl FileRoom {
    pub(crate) const fn new() -> FileRoom {
        FileRoom
    }

    pub(crate) fn each_line_of(&mut self, _path: &core::ffi::CStr, _each: impl FnMut(&[u8]) -> bool) {}
}

pub(crate) struct Turn<T>(std::sync::Mutex<T>);

impl<T> Turn<T> {
    pub(crate) const fn new(room: T) -> Turn<T> {
        Turn(std::sync::Mutex::new(room))
    }

    pub(crate) fn take(&self, f: impl FnOnce(&mut T)) {
        if let Ok(mut room) = self.0.try_lock() {
            f(&mut room);
        }
    }
}

pub(crate) unsafe fn guard(_start: NonNull<u8>, _len: usize) -> bool {
    false
}

pub(crate) unsafe fn unguard(_start: NonNull<u8>, _len: usize) -> bool {
    true
}

pub(crate) fn random_key() -> [u64; 2] {
    use std::hash::{BuildHasher, RandomState};
    [0, 1].map(|n: u32| RandomState::new().hash_one(n))
}

pub(crate) fn is_readable(_start: usize) -> bool {
    true
}

pub(crate) fn register_membarrier() -> bool {
    false
}

pub(crate) fn fence_cpu(_cpu: usize) -> bool {
    false
}

pub(crate) fn futex_wait(_word: &AtomicU32, _expected: u32) {
    std::thread::yield_now();
}

pub(crate) fn futex_wake(_word: &AtomicU32) {}

pub(crate) fn current_cpu() -> usize {
    0
}

pub(crate) fn monotonic_nanos() -> u64 {
    static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    // Not 0, even at the start.
    START.get_or_init(std::time::Instant::now).elapsed().as_nanos() as u64 + 1
}

pub(crate) fn possible_cpus() -> usize {
    1
}

pub(crate) fn each_cpu_of_node(_each: impl FnMut(usize, usize)) {}

pub(crate) fn each_cpu_of_cache(_each: impl FnMut(usize, usize)) {}

pub(crate) fn each_node(_each: impl FnMut(usize)) {}

pub(crate) fn node_distances(_node: usize) -> [u8; MAX_NODES] {
    [u8::MAX; MAX_NODES]
}

pub(crate) fn current_cpu_and_node() -> Option<(usize, usize)> {
    None
}

pub(crate) fn node_has_memory(node: usize) -> bool {
    node == 0
}

pub(crate) unsafe fn prefer_node(_start: NonNull<u8>, _len: usize, _node: usize) {}

pub(crate) const ENOSYS: i32 = 38;
pub(crate) const EINVAL: i32 = 22;
pub(crate) const ENOMEM: i32 = 12;

/// As `rseq.rs` has it; here it is always the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code)]
pub(crate) enum LibcRseq {
    Absent,
    Declined,
    At(isize),
}

pub(crate) fn libc_rseq() -> LibcRseq {
    LibcRseq::Absent
}

pub(crate) fn rseq_aborts() -> bool {
    true
}

pub(crate) fn environment(_name: &core::ffi::CStr) -> Option<&'static core::ffi::CStr> {
    None
}

pub(crate) fn with_signals_blocked<R>(f: impl FnOnce() -> R) -> R {
    f()
}

pub(crate) fn spawn(_name: &'static core::ffi::CStr, _body: extern "C" fn()) -> bool {
    false
}

pub(crate) fn at_fork(_prepare: extern "C" fn(), _parent: extern "C" fn(), _child: extern "C" fn()) -> bool {
    true
}

pub(crate) fn at_exit(_f: extern "C" fn()) -> bool {
    false
}

pub(crate) fn stay_loaded() {}

std::thread_local! {
    static AT_EXIT: Exit = const { Exit(core::cell::Cell::new(None)) };
}

struct Exit(core::cell::Cell<Option<(unsafe extern "C" fn(*mut c_void), *mut c_void)>>);

impl Drop for Exit {
    fn drop(&mut self) {
        if let Some((destructor, value)) = self.0.take() {
            // SAFETY: `arm` stored a destructor with the value it wants.
            unsafe { destructor(value) };
        }
    }
}

pub(crate) struct ThreadExit {
    destructor: Mutex<Option<unsafe extern "C" fn(*mut c_void)>>,
}

impl ThreadExit {
    pub(crate) const fn new() -> Self {
        ThreadExit { destructor: Mutex::new(None) }
    }

    pub(crate) fn create(&self, destructor: unsafe extern "C" fn(*mut c_void)) -> bool {
        *self.destructor.lock().unwrap() = Some(destructor);
        true
    }

    pub(crate) fn is_possible(&self) -> bool {
        // What refuses here is a thread that has ended but for its other destructors.
        false
    }

    pub(crate) fn arm(&self, value: *mut c_void) -> bool {
        let destructor = *self.destructor.lock().unwrap();
        destructor.is_some_and(|d| AT_EXIT.try_with(|exit| exit.0.set(Some((d, value)))).is_ok())
    }
}

pub(crate) fn abort_with(line: &[u8]) -> ! {
    panic!("{}", String::from_utf8_lossy(line))
}

pub(crate) fn resident_bytes(_start: NonNull<u8>, len: usize) -> usize {
    len
}

pub(crate) fn register_process_fence() -> bool {
    false
}

pub(crate) fn fence_process() -> bool {
    false
}

pub(crate) fn futex_wait_for(word: &AtomicU32, expected: u32, timeout: core::time::Duration) {
    // Ordering: as strong as a futex's own look.
    if word.load(Ordering::SeqCst) == expected {
        std::thread::sleep(timeout.min(core::time::Duration::from_millis(1)));
    }
}

pub(crate) fn thread_id() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    std::thread_local!(static ID: u32 = NEXT.fetch_add(1, Ordering::Relaxed));
    ID.with(|id| *id)
}

pub(crate) fn name_thread(_id: u32, line: &mut super::Message) {
    line.text("?");
}

pub(crate) fn read_file<'a>(_path: &core::ffi::CStr, _buffer: &'a mut [u8]) -> &'a [u8] {
    &[]
}

pub(crate) struct Trigger;

impl Trigger {
    pub(crate) fn new(_path: &core::ffi::CStr, _when: &[u8]) -> Option<Trigger> {
        None
    }

    pub(crate) fn after_fork() {}

    pub(crate) fn wait(&self, _time: core::time::Duration) -> Option<bool> {
        None
    }
}

pub(crate) fn report(line: &[u8]) {
    eprint!("{}", String::from_utf8_lossy(line));
}

#[cfg(feature = "capi")]
pub(crate) fn look_for_threads() {}

#[cfg(feature = "capi")]
pub(crate) fn is_single_threaded() -> bool {
    false
}
