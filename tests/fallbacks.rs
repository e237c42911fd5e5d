//! The heap on kernels and C libraries that lack what it would like to have: the same work, in another mode.

#![cfg(not(any(loom, pcpalloc_twin)))]

mod common;

use std::sync::{Arc, Mutex, mpsc};

use common::child::{self, Child, say};
use common::kernel::{self, Kernel, Refusal};
use common::{Block, HEAP, KIB, cpus, on_cpu, on_threads, scaled, workload};
use pcpalloc::{Drain, Mode, PcpAlloc};

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

/// Every kernel the workload has to run on, by a name that a child process is told.
const KERNELS: [(&str, Kernel); 9] = [
    ("whole", Kernel::Whole),
    ("libc-without-rseq", Kernel::LibcWithoutRseq),
    ("rseq-enosys", Kernel::WithoutRseq(libc::ENOSYS)),
    ("rseq-eperm", Kernel::WithoutRseq(libc::EPERM)),
    ("rseq-einval", Kernel::WithoutRseq(libc::EINVAL)),
    ("membarrier-enosys", Kernel::WithoutMembarrier(libc::ENOSYS)),
    ("membarrier-eperm", Kernel::WithoutMembarrier(libc::EPERM)),
    ("fence-eperm", Kernel::WithoutFence(libc::EPERM)),
    ("fence-einval", Kernel::WithoutFence(libc::EINVAL)),
];

fn kernel_named(name: &str) -> Kernel {
    KERNELS.iter().find(|kernel| kernel.0 == name).expect("the kernel is one of ours").1
}

/// On the system as it is, in this process: what other programs (debuggers, emulators) can be put around.
///
/// Red if any of what `tests/common/workload.rs` compares is wrong.
#[test]
fn workload_as_it_is() {
    workload::run();
    println!("\nmode: {:?}", HEAP.stats().mode);
}

/// Red if the mode is not the one that the kernel allows: in `choice` (`src/percpu/choice.rs`), return `OwnRseq`
/// without having registered, or do not ask for `libc_rseq`.
#[test]
fn workload_on_every_kernel() {
    const NAME: &str = "workload_on_every_kernel";
    child::body(NAME, |kernel| {
        workload::run();
        kernel_named(kernel).assert_mode();
        say("mode", format!("{:?}", HEAP.stats().mode));
    });
    for (name, kernel) in KERNELS {
        let outcome = Child::new(NAME, name).kernel(kernel).run().succeeded();
        println!("{name}: {}", outcome.value("mode"));
        let per_thread = outcome.value("mode") == format!("{:?}", Mode::PerThread);
        assert_eq!(per_thread, matches!(kernel, Kernel::WithoutRseq(_)));
    }
}

/// Leaves blocks in the stacks of every CPU, by threads that have ended.
fn fill_all_stacks() {
    for cpu in cpus() {
        on_cpu(cpu, || {
            let blocks: Vec<_> = (0..16).map(|n| Block::new(64 << (n % 4), 8, n).expect("there is memory")).collect();
            drop(blocks);
        });
    }
}

/// What cannot be reached is said, and what can be is emptied.
///
/// Red if a CPU that was not fenced is taken to be stopped: in `stop_in` (`src/percpu/table.rs`), return true
/// whatever `fence_cpu` says; in `fence::init` (`src/percpu/fence.rs`), note that there is a fence whatever is passed.
#[test]
fn drains_on_every_kernel() {
    const NAME: &str = "drains_on_every_kernel";
    child::body(NAME, |kernel| {
        fill_all_stacks();
        let cached = HEAP.stats().percpu_cached;
        common::move_thread(0, cpus()[0]);
        let report = HEAP.drain(Drain::All);
        let left = HEAP.stats().percpu_cached;
        kernel_named(kernel).assert_mode();
        say("mode", format!("{:?}", HEAP.stats().mode));
        say("cached", cached);
        say("left", left);
        say("unreachable", report.unreachable_cpus);
        // Nothing is stopped for good.
        workload::run();
        let trimmed = HEAP.trim();
        say("unreachable by trim", trimmed.unreachable_cpus);
    });
    let cpus = cpus().len();
    for (name, kernel) in KERNELS {
        let outcome = Child::new(NAME, name).kernel(kernel).settings("worker:off").run().succeeded();
        let (left, unreachable) = (outcome.number("left"), outcome.number("unreachable"));
        let expected = match kernel {
            _ if outcome.value("mode") == format!("{:?}", Mode::PerThread) => 0,
            // The CPU that the caller runs on needs no fence.
            Kernel::WithoutMembarrier(_) => cpus - 1,
            Kernel::WithoutFence(_) => cpus,
            _ => 0,
        };
        assert_eq!(unreachable, expected, "{name}: {outcome:#?}");
        assert_eq!(outcome.number("unreachable by trim"), expected, "{name}: {outcome:#?}");
        if expected > 0 {
            assert!(left > 0, "{name}: {outcome:#?}");
        } else if outcome.value("mode") != format!("{:?}", Mode::PerThread) {
            assert!(outcome.number("cached") > 4 * KIB, "there was something to drain: {outcome:#?}");
            assert_eq!(left, 0, "{name}: {outcome:#?}");
        }
    }
}

/// Threads without rseq in a process whose mode was chosen when there was one: they find every stack empty and full,
/// are served by slabs, and share blocks with threads that have stacks, on every CPU.
///
/// Red if such a thread finds a CPU's stacks: in the macro `header` (`src/percpu/x86_64.rs`), use `cpu_id_start`
/// (`[{off}]`), which is 0 for it, and not `cpu_id`, which is -1 or -2.
#[test]
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn threads_without_rseq_among_others() {
    const NAME: &str = "threads_without_rseq_among_others";
    // Few classes, so that all threads work with the same stacks.
    let blocks = |count: u64, seed| -> Vec<Block> {
        let block = |n: u64| Block::new([48, 200, 1500][n as usize % 3], 16, seed).expect("there is memory");
        (0..count).map(block).collect()
    };
    child::body(NAME, |name| {
        let kernel = kernel_named(name);
        let before = HEAP.stats();
        kernel.assert_mode();
        let (sender, receiver) = mpsc::sync_channel::<Vec<Block>>(8);
        let receiver = Arc::new(Mutex::new(receiver));
        let others: Vec<_> = cpus()
            .into_iter()
            .map(|cpu| {
                let receiver = receiver.clone();
                std::thread::spawn(move || {
                    common::move_thread(0, cpu);
                    let receive = || receiver.lock().unwrap().recv();
                    while let Ok(received) = receive() {
                        let mine = blocks(60, cpu as u64);
                        drop(received);
                        drop(mine);
                    }
                })
            })
            .collect();
        let without = std::thread::spawn(move || {
            if refused_later(kernel) {
                // Holds for this thread and those that it starts.
                Refusal::rseq(libc::EPERM).install().unwrap();
            }
            on_threads((0..4).map(|seed| {
                let sender = sender.clone();
                move || {
                    if !refused_later(kernel) {
                        kernel::unregister_libc_rseq();
                    }
                    for _ in 0..scaled(1000) {
                        let mut mine = blocks(60, seed);
                        sender.send(mine.split_off(40)).unwrap();
                    }
                }
            }));
        });
        without.join().unwrap();
        others.into_iter().for_each(|other| other.join().unwrap());
        let after = HEAP.stats();
        assert_eq!(after.mode, before.mode);
        assert!(after.in_use < before.in_use + 64 * KIB, "nothing is lost:\n{before}\n{after}");
        assert_eq!(HEAP.drain(Drain::All).unreachable_cpus, 0);
    });
    if kernel::libc_has_registered() {
        Child::new(NAME, "whole").run().succeeded();
    }
    Child::new(NAME, "libc-without-rseq").kernel(Kernel::LibcWithoutRseq).run().succeeded();
}

/// Whether threads are left without rseq by refusing it from some time on. (A C library that has registered some
/// threads insists on registering all.)
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn refused_later(kernel: Kernel) -> bool {
    matches!(kernel, Kernel::LibcWithoutRseq)
}
