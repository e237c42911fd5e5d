//! A sampling profiler whose handler allocates: `SIGPROF` records stacks into nolock blocks while the program it
//! interrupts allocates at full speed.
//!
//! An ordinary allocation in the handler would deadlock as soon as it interrupted one. A fixed buffer would have to
//! be as large as the worst second of the program. Here the samples are blocks of the heap: as many as come, and
//! when the cache has none at hand, a sample is missed and counted.
//!
//! Run it with `cargo run --release --example signal_sampler [seconds]`; with
//! `RUSTFLAGS="-C force-frame-pointers=yes"` stacks are deeper than one frame.

use core::cell::Cell;
use core::ffi::{c_int, c_void};
use core::ptr::{NonNull, null_mut};
use std::alloc::{GlobalAlloc, Layout};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use pcpalloc::PcpAlloc;

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

const DEPTH: usize = 62;

/// One stack, innermost address first.
struct Sample {
    next: *mut Sample,
    len: usize,
    addresses: [usize; DEPTH],
}

const LAYOUT: Layout = Layout::new::<Sample>();

/// Samples that nobody has looked at yet: pushed by handlers, taken as a whole.
static SAMPLES: AtomicPtr<Sample> = AtomicPtr::new(null_mut());
static MISSED: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Where this thread's stack ends, once it has said so.
    static STACK_END: Cell<usize> = const { Cell::new(0) };
}

/// Has this thread's stacks walked from now on.
fn register_thread() {
    // SAFETY: the attributes are initialised by the first call, read by the second and destroyed by the third.
    unsafe {
        let mut attributes: libc::pthread_attr_t = core::mem::zeroed();
        let (mut low, mut size) = (null_mut(), 0);
        if libc::pthread_getattr_np(libc::pthread_self(), &mut attributes) == 0 {
            if libc::pthread_attr_getstack(&attributes, &mut low, &mut size) == 0 {
                STACK_END.set(low as usize + size);
            }
            libc::pthread_attr_destroy(&mut attributes);
        }
    }
}

extern "C" fn on_sample(_: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    let Some(block) = GLOBAL.try_alloc_nolock(LAYOUT) else {
        MISSED.fetch_add(1, Ordering::Relaxed);
        return;
    };
    let sample = block.cast::<Sample>().as_ptr();
    // SAFETY: the block is ours and large enough; the kernel passes a `ucontext_t`.
    unsafe {
        let [ip, sp, bp] = registers(&*context.cast::<libc::ucontext_t>());
        (*sample).addresses[0] = ip;
        (*sample).len = 1 + walk(sp, bp, &mut (&mut (*sample).addresses)[1..]);
        let mut next = SAMPLES.load(Ordering::Relaxed);
        loop {
            (*sample).next = next;
            // Release, paired with the acquire in `collect`.
            match SAMPLES.compare_exchange_weak(next, sample, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => next = now,
            }
        }
    }
}

/// Where a thread was interrupted: the address of the instruction, the stack pointer, and the frame pointer.
#[cfg(target_arch = "x86_64")]
fn registers(context: &libc::ucontext_t) -> [usize; 3] {
    [libc::REG_RIP, libc::REG_RSP, libc::REG_RBP].map(|n| context.uc_mcontext.gregs[n as usize] as usize)
}

/// As above. Register 29 is the frame pointer. (AAPCS64, 6.4.6.)
#[cfg(target_arch = "aarch64")]
fn registers(context: &libc::ucontext_t) -> [usize; 3] {
    let registers = &context.uc_mcontext;
    [registers.pc, registers.sp, registers.regs[29]].map(|value| value as usize)
}

/// Elsewhere nobody asks: `main` says that the program is not available.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn registers(_context: &libc::ucontext_t) -> [usize; 3] {
    [0; 3]
}

/// Follows frame pointers for as long as they lead up the thread's own stack.
fn walk(sp: usize, mut frame: usize, out: &mut [usize]) -> usize {
    let end = STACK_END.get();
    let (mut len, mut lowest) = (0, sp);
    while len < out.len() && frame >= lowest && frame.is_multiple_of(8) && frame.saturating_add(16) <= end {
        // SAFETY: between the stack's top and its end, both of which are mapped; two words fit.
        let [next, address] = unsafe { *(frame as *const [usize; 2]) };
        if address == 0 {
            break;
        }
        // The address that the frame returns to; the call is before it.
        out[len] = address - 1;
        len += 1;
        lowest = frame + 16;
        frame = next;
    }
    len
}

/// How often each address was innermost, and on a stack at all.
#[derive(Default)]
struct Profile {
    samples: usize,
    depth: usize,
    innermost: HashMap<usize, usize>,
    anywhere: HashMap<usize, usize>,
}

impl Profile {
    /// Takes what handlers have recorded meanwhile, and gives the blocks back.
    fn collect(&mut self) {
        // Acquire, paired with the release in `on_sample`.
        let mut sample = SAMPLES.swap(null_mut(), Ordering::Acquire);
        while let Some(block) = NonNull::new(sample) {
            // SAFETY: recorded by a handler, and ours since the swap; an ordinary block of this layout.
            unsafe {
                let recorded = block.as_ref();
                let mut addresses = recorded.addresses[..recorded.len].to_vec();
                sample = recorded.next;
                GLOBAL.dealloc(block.cast().as_ptr(), LAYOUT);
                self.samples += 1;
                self.depth += addresses.len();
                *self.innermost.entry(addresses[0]).or_default() += 1;
                addresses.sort_unstable();
                addresses.dedup();
                addresses.into_iter().for_each(|address| *self.anywhere.entry(address).or_default() += 1);
            }
        }
    }

    fn print(&self) {
        let by_name = |addresses: &HashMap<usize, usize>| {
            let mut names: HashMap<String, usize> = HashMap::new();
            for (&address, &count) in addresses {
                let mut name = format!("{address:#x}");
                backtrace::resolve(address as *mut c_void, |symbol| {
                    if let Some(found) = symbol.name() {
                        name = format!("{found:#}");
                    }
                });
                *names.entry(name).or_default() += count;
            }
            let mut names: Vec<_> = names.into_iter().collect();
            names.sort_unstable_by_key(|(name, count)| (core::cmp::Reverse(*count), name.clone()));
            names
        };
        let percent = |count: usize| 100.0 * count.min(self.samples) as f64 / self.samples.max(1) as f64;
        println!("\n  innermost");
        for (name, count) in by_name(&self.innermost).iter().take(12) {
            println!("  {:5.1} %  {name}", percent(*count));
        }
        if self.depth > 2 * self.samples {
            println!("\n  on the stack");
            for (name, count) in by_name(&self.anywhere).iter().take(12) {
                println!("  {:5.1} %  {name}", percent(*count));
            }
        }
    }
}

/// A program to be looked at: counts words of a text it makes up, and sorts them by how often they came.
fn count_words(seed: usize, stop: &AtomicBool) -> usize {
    let mut rounds = 0;
    while !stop.load(Ordering::Relaxed) {
        let mut state = seed + rounds;
        let mut words: HashMap<String, usize> = HashMap::new();
        for _ in 0..20_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *words.entry(format!("word{}", (state >> 33) % 5000)).or_default() += 1;
        }
        let mut ranked: BTreeMap<usize, Vec<String>> = BTreeMap::new();
        for (word, count) in words {
            ranked.entry(count).or_default().push(word);
        }
        rounds += ranked.len().min(1);
    }
    rounds
}

fn main() {
    if !cfg!(any(target_arch = "x86_64", target_arch = "aarch64")) {
        return println!(
            "not available: where this processor keeps its registers in a signal is known of x86-64 and aarch64"
        );
    }
    let seconds = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(3.0);
    GLOBAL.charge_nolock(LAYOUT, 128).expect("memory for the samples");
    // SAFETY: the structures are initialised before use; the handler is of the type that SA_SIGINFO asks for.
    unsafe {
        let mut action: libc::sigaction = core::mem::zeroed();
        action.sa_sigaction = on_sample as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
        assert_eq!(libc::sigaction(libc::SIGPROF, &action, null_mut()), 0);
        let every = libc::timeval { tv_sec: 0, tv_usec: 500 };
        let timer = libc::itimerval { it_interval: every, it_value: every };
        assert_eq!(libc::setitimer(libc::ITIMER_PROF, &timer, null_mut()), 0);
    }
    let (stop, mut profile) = (AtomicBool::new(false), Profile::default());
    let rounds: usize = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..2)
            .map(|seed| {
                let stop = &stop;
                scope.spawn(move || {
                    register_thread();
                    count_words(seed, stop)
                })
            })
            .collect();
        let end = Instant::now() + Duration::from_secs_f64(seconds);
        while Instant::now() < end {
            std::thread::sleep(Duration::from_millis(50));
            profile.collect();
        }
        stop.store(true, Ordering::Relaxed);
        workers.into_iter().map(|worker| worker.join().expect("a worker")).sum()
    });
    // SAFETY: a timer of zeros is none.
    unsafe { libc::setitimer(libc::ITIMER_PROF, &core::mem::zeroed(), null_mut()) };
    profile.collect();
    let missed = MISSED.load(Ordering::Relaxed);
    let rate = 100.0 * profile.samples as f64 / (profile.samples + missed).max(1) as f64;
    println!("{rounds} rounds; {} samples recorded, {missed} missed: {rate:.2} %", profile.samples);
    profile.print();
}
