//! Several memory nodes, and CPUs that come and go. Where there is one node, or CPUs may not be turned off, the tests say
//! so and pass; `tests/hosts/qemu-x86.sh` boots a machine that has both.

#![cfg(not(any(loom, pcpalloc_twin, miri)))]

mod common;

use std::alloc::{GlobalAlloc, Layout};
use std::fs;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard};

use common::child::{self, Child, say};
use common::{Block, HEAP, KIB, MIB, cpus, on_cpu};
use pcpalloc::debug::{Level, STACKS_BYTES, check, nodes_from, shared};
use pcpalloc::{Drain, Mode, rcu};

/// One test at a time, for one of them takes a CPU away.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The numbers in a kernel list such as `0-3,8`.
fn numbers(list: &str) -> Vec<usize> {
    let parts = list.trim().split(',').filter(|part| !part.is_empty());
    let ends = parts.map(|part| part.split_once('-').unwrap_or((part, part)));
    ends.flat_map(|(first, last)| first.parse().unwrap()..=last.parse().unwrap()).collect()
}

fn read(path: &str) -> String {
    fs::read_to_string(format!("/sys/devices/system/{path}")).unwrap_or_default()
}

/// The nodes, each with the CPUs of it that can be used.
fn nodes() -> Vec<(usize, Vec<usize>)> {
    let usable = cpus();
    let nodes = numbers(&read("node/online")).into_iter();
    nodes
        .map(|node| {
            let of_node = numbers(&read(&format!("node/node{node}/cpulist")));
            (node, of_node.into_iter().filter(|cpu| usable.contains(cpu)).collect())
        })
        .collect()
}

/// On which node each of the pages is; negative if it is on none.
fn nodes_of_pages(pages: &[*mut u8]) -> Vec<i32> {
    let mut status = vec![-1; pages.len()];
    // SAFETY: both arrays are as long as said; without nodes to move them to, no page is moved.
    let result =
        unsafe { libc::syscall(libc::SYS_move_pages, 0, pages.len(), pages.as_ptr(), 0usize, status.as_mut_ptr(), 0) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    status
}

/// The policy under which memory at an address is placed, and the nodes that it names, as bits.
fn policy_at(address: *mut u8) -> (i32, u64) {
    const OF_ADDRESS: usize = 2;
    let (mut mode, mut mask) = (-1, 0u64);
    // SAFETY: both are valid for the write, the mask for the 64 bits stated.
    let result =
        unsafe { libc::syscall(libc::SYS_get_mempolicy, &raw mut mode, &raw mut mask, 64usize, address, OF_ADDRESS) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    (mode, mask)
}

fn blocks(size: usize, count: usize) -> Vec<Block> {
    (0..count).map(|n| Block::new(size, 8, n as u64).expect("there is memory")).collect()
}

/// Blocks of two nodes that come back by turns go home one node after the other, so that few locks are taken.
///
/// Red on such a machine if they do not: in `free_bulk` (`src/slab/bulk.rs`), call `free_to_slabs` at once.
#[test]
fn blocks_of_two_nodes_go_home_together() {
    let _alone = alone();
    const NAME: &str = "blocks_of_two_nodes_go_home_together";
    const BLOCKS: usize = 400;
    if nodes().len() < 2 {
        return println!("skipped: {} memory node", nodes().len());
    }
    child::body(NAME, |_| {
        let layout = Layout::from_size_align(200, 8).unwrap();
        let with_cpus: Vec<_> =
            nodes().into_iter().filter(|(_, cpus)| !cpus.is_empty()).map(|(node, _)| node).collect();
        on_cpu(cpus()[0], || {
            let block = |n: usize| HEAP.alloc_on_node(layout, with_cpus[n % 2]).expect("there is memory");
            let blocks: Vec<_> = (0..BLOCKS).map(block).collect();
            let before = shared().slabs.taken;
            // SAFETY: each was allocated with this layout, and is freed once.
            blocks.iter().for_each(|block| unsafe { HEAP.dealloc(block.as_ptr(), layout) });
            let _ = HEAP.drain(Drain::All);
            let locks = shared().slabs.taken - before;
            assert!(locks < BLOCKS as u64 / 4, "{locks} locks for {BLOCKS} blocks");
            say("locks", locks);
        });
        check(Level::Blocks).expect("everything adds up");
    });
    let outcome = Child::new(NAME, "").settings("worker:off").run().succeeded();
    println!("{} locks for {BLOCKS} blocks", outcome.number("locks"));
}

/// A node that has no empty slabs gets new ones without a look at every class, however many empty ones others have.
///
/// Red on such a machine if all are looked at: in `make_room_now` (`src/slab/retire.rs`), leave the filter out.
#[test]
fn empty_slabs_elsewhere_cost_nothing() {
    let _alone = alone();
    const NAME: &str = "empty_slabs_elsewhere_cost_nothing";
    const BLOCKS: usize = 20_000;
    let with_memory: Vec<usize> =
        nodes().into_iter().filter(|(_, cpus)| !cpus.is_empty()).map(|(node, _)| node).collect();
    if with_memory.len() < 2 {
        return println!("skipped: {} memory node", with_memory.len());
    }
    child::body(NAME, |_| {
        let layout = Layout::from_size_align(400, 8).unwrap();
        let allocate = |node: usize| {
            let block = |_| HEAP.alloc_on_node(layout, node).expect("there is memory");
            (0..BLOCKS).map(block).collect::<Vec<_>>()
        };
        // SAFETY: each was allocated with this layout, and is freed once.
        let free = |blocks: Vec<NonNull<u8>>| blocks.iter().for_each(|b| unsafe { HEAP.dealloc(b.as_ptr(), layout) });
        free(allocate(with_memory[0]));
        let _ = HEAP.drain(Drain::All);
        let before = shared();
        let blocks = allocate(with_memory[1]);
        let after = shared();
        let (locks, runs) = (after.slabs.taken - before.slabs.taken, after.zones.taken - before.zones.taken);
        assert!(runs > 100, "slabs are made anew: {runs}");
        // One for every block, which is allocated by itself on another node, and one for a slab to come on the list.
        assert!(locks < BLOCKS as u64 * 3 / 2, "{locks} locks for {BLOCKS} blocks in {runs} slabs");
        free(blocks);
        check(Level::Blocks).expect("everything adds up");
        say("locks", locks);
    });
    let outcome = Child::new(NAME, "").settings("worker:off").run().succeeded();
    println!("{} locks for {BLOCKS} blocks", outcome.number("locks"));
}

/// Blocks whose free was deferred serve their own node, wherever they are freed in the end.
///
/// Red on such a machine if they serve the node of whoever frees them: in `Gather::add` (`src/rcu/gather.rs`), let
/// `percpu::node_here()` be the node.
#[test]
fn deferred_frees_go_back_to_their_nodes() {
    let _alone = alone();
    const NAME: &str = "deferred_frees_go_back_to_their_nodes";
    const BLOCKS: usize = 500;
    let first_cpus: Vec<(usize, usize)> =
        nodes().into_iter().filter_map(|(node, cpus)| Some((node, *cpus.first()?))).collect();
    if first_cpus.len() < 2 {
        return println!("skipped: {} memory node", first_cpus.len());
    }
    child::body(NAME, |_| {
        let layout = Layout::from_size_align(4096, 4096).unwrap();
        rcu::set_reclaimer(false);
        // What is deferred while somebody reads comes back at once.
        let section = rcu::read_lock();
        for &(_, cpu) in &first_cpus {
            on_cpu(cpu, || {
                for _ in 0..BLOCKS {
                    // SAFETY: the size is not 0, nobody else knows the block, and it has this layout.
                    unsafe {
                        let block = NonNull::new(HEAP.alloc(layout)).expect("there is memory");
                        block.write(1);
                        rcu::free(block, layout);
                    }
                }
            });
        }
        drop(section);
        on_cpu(first_cpus[0].1, || assert_eq!(rcu::drain().freed, BLOCKS * first_cpus.len()));
        for &(node, cpu) in &first_cpus {
            on_cpu(cpu, || {
                let before = shared();
                let blocks = blocks(4096, 100);
                assert!(shared().transfers > before.transfers, "some came by the lanes");
                let pages: Vec<*mut u8> = blocks.iter().map(|block| block.range().start as *mut u8).collect();
                let elsewhere = nodes_of_pages(&pages).into_iter().filter(|&found| found != node as i32).count();
                assert_eq!(elsewhere, 0, "blocks on node {node}");
            });
        }
        check(Level::Blocks).expect("everything adds up");
    });
    Child::new(NAME, "").settings("worker:off").run().succeeded();
}

/// Every block, small, a run, larger than any class, lies on the node of the CPU where it was asked for, and its memory
/// is placed there by preference, so that a node that is full is no failure.
///
/// Red on such a machine if zones are not bound: in `prefer_node` (`src/sys/cpus.rs`), return at once. Red if the node of
/// a CPU is not known: in `node_of` (`src/percpu/cpus.rs`), return 0.
#[test]
fn memory_is_on_the_node_of_the_cpu() {
    let _alone = alone();
    const NAME: &str = "memory_is_on_the_node_of_the_cpu";
    const PREFERRED: i32 = 1;
    let count = nodes().len();
    if count < 2 {
        return println!("skipped: {count} memory node");
    }
    child::body(NAME, |_| {
        let (mut pages, mut nodes_seen) = (0, 0);
        for (node, cpus) in nodes() {
            let Some(&cpu) = cpus.first() else { continue };
            on_cpu(cpu, || {
                for (size, count) in [(64, 20_000), (4000, 1000), (64 * KIB, 60), (MIB, 8)] {
                    let blocks = blocks(size, count);
                    let addresses: Vec<*mut u8> = blocks.iter().map(|block| block.range().start as *mut u8).collect();
                    let elsewhere =
                        nodes_of_pages(&addresses).into_iter().filter(|&found| found != node as i32).count();
                    assert_eq!(elsewhere, 0, "of {count} blocks of {size} bytes on node {node}");
                    assert_eq!(
                        policy_at(addresses[0]),
                        (PREFERRED, 1 << node),
                        "blocks of {size} bytes on node {node}"
                    );
                    pages += count;
                }
            });
            nodes_seen += 1;
        }
        check(Level::Blocks).expect("everything adds up");
        say("pages", pages);
        say("nodes", nodes_seen);
    });
    let outcome = Child::new(NAME, "").settings("worker:off").run().succeeded();
    println!("{} blocks on {} nodes, each where it belongs", outcome.value("pages"), outcome.value("nodes"));
    assert!(outcome.number("nodes") > 1);
}

/// Where a node gives no memory, the nearest is asked next.
///
/// Red if distances are not looked at: in `note_distances` (`src/zone/node.rs`), leave them out of the key. (On a machine
/// whose distances differ otherwise than by number.) Red on one with a node whose CPUs are all offline if only nodes with
/// CPUs are known: in `cpus::init` (`src/percpu/cpus.rs`), leave `each_node` out.
#[test]
fn the_nearest_node_is_next() {
    let _alone = alone();
    let nodes = nodes();
    drop(Block::new(1, 1, 0));
    for (node, _) in &nodes {
        let order = nodes_from(*node);
        let distances = read(&format!("node/node{node}/distance"));
        let distances: Vec<usize> = distances.split_whitespace().map(|d| d.parse().unwrap()).collect();
        assert_eq!(order[0], *node);
        let mut all = order.clone();
        all.sort_unstable();
        assert!(nodes.iter().all(|(node, _)| all.contains(node)), "{order:?}");
        let by_order: Vec<usize> = order
            .iter()
            .filter_map(|node| Some(distances[nodes.iter().position(|(other, _)| other == node)?]))
            .collect();
        assert!(by_order.is_sorted(), "from node {node}: {order:?}, which are as far as {by_order:?}");
        println!("from node {node}: {order:?}, which are as far as {by_order:?}");
    }
    if nodes.len() < 2 {
        println!("skipped: {} memory node", nodes.len());
    }
}

/// What CPUs cost: the address space of their stacks, and in them what one megabyte each may hold.
///
/// Red if CPUs that nobody runs on have stacks: in `percpu::init`, make a region for each.
#[test]
fn memory_of_cpus_is_as_computed() {
    let _alone = alone();
    const NAME: &str = "memory_of_cpus_is_as_computed";
    child::body(NAME, |_| {
        let use_all_classes = || drop([16, 100, 500, 3000, 20_000].map(|size| blocks(size, 200)));
        let cpus = cpus();
        on_cpu(cpus[0], use_all_classes);
        if HEAP.stats().mode == Mode::PerThread {
            return say("cpus", 0);
        }
        let one = HEAP.stats();
        // Metadata of the batches and slabs that others need is there already.
        for &cpu in &cpus[1..] {
            on_cpu(cpu, use_all_classes);
        }
        let all = HEAP.stats();
        let others = cpus.len() - 1;
        let metadata = all.metadata.saturating_sub(one.metadata);
        // Zones of other nodes have tables of their own.
        let tables = (nodes().len() - 1) * 2 * MIB;
        assert!(metadata <= others * STACKS_BYTES + tables + MIB, "{metadata} bytes for {others} CPUs");
        assert!(all.percpu_cached <= cpus.len() * MIB, "{all:?}");
        assert!(all.percpu_cached >= others * 16 * KIB, "every CPU has something: {all:?}");
        let drained = HEAP.drain(Drain::All);
        assert_eq!((HEAP.stats().percpu_cached, drained.unreachable_cpus), (0, 0));
        check(Level::Blocks).expect("everything adds up");
        say("cpus", cpus.len());
        say("metadata", metadata / others.max(1));
        say("cached", all.percpu_cached / cpus.len());
    });
    let outcome = Child::new(NAME, "").settings("worker:off").run().succeeded();
    match outcome.number("cpus") {
        0 => println!("skipped: stacks belong to threads here"),
        cpus => println!(
            "{cpus} CPUs: {} bytes of stacks for each, of {STACKS_BYTES}, which hold {} bytes",
            outcome.value("metadata"),
            outcome.value("cached")
        ),
    }
}

/// A CPU that comes after the heap has stacks, of its own node; one that goes leaves blocks behind, which a drain finds.
/// Turns a CPU off and on again, so only where `PCPALLOC_TEST_HOTPLUG` is set.
///
/// Red on a machine with several nodes if the node is not asked for: in `create_region` (`src/percpu/regions.rs`), leave
/// `note_node_here` out. Red if a CPU that is offline counts as unreachable.
#[test]
fn cpus_come_and_go() {
    let _alone = alone();
    const NAME: &str = "cpus_come_and_go";
    let last = *cpus().last().unwrap();
    let online = move |yes: bool| {
        fs::write(format!("/sys/devices/system/cpu/cpu{last}/online"), if yes { "1" } else { "0" }).is_ok()
    };
    if std::env::var_os("PCPALLOC_TEST_HOTPLUG").is_none() {
        return println!("skipped: PCPALLOC_TEST_HOTPLUG is not set");
    }
    let (node, _) = nodes().into_iter().find(|(_, cpus)| cpus.contains(&last)).expect("every CPU is on a node");
    child::body(NAME, |argument| {
        let (cpu, node): (usize, i32) = {
            let (cpu, node) = argument.split_once('/').unwrap();
            (cpu.parse().unwrap(), node.parse().unwrap())
        };
        let online = |yes: bool| {
            assert!(fs::write(format!("/sys/devices/system/cpu/cpu{cpu}/online"), if yes { "1" } else { "0" }).is_ok());
        };
        // The heap is up, and the CPU was not there.
        drop(blocks(900, 100));
        assert!(!cpus().contains(&cpu));
        online(true);
        let before = HEAP.stats().percpu_cached;
        on_cpu(cpu, || {
            let blocks = blocks(900, 2000);
            let addresses: Vec<*mut u8> = blocks.iter().map(|block| block.range().start as *mut u8).collect();
            let elsewhere = nodes_of_pages(&addresses).into_iter().filter(|&found| found != node).count();
            say("elsewhere", elsewhere);
        });
        assert!(HEAP.stats().percpu_cached > before || HEAP.stats().mode == Mode::PerThread);
        online(false);
        let in_use = HEAP.stats().in_use;
        let report = HEAP.drain(Drain::Cpu(cpu));
        say("drained", report.drained);
        assert_eq!(report.unreachable_cpus, 0, "{report:?}");
        assert_eq!(HEAP.stats().in_use, in_use);
        // And again: other threads, the same stacks.
        online(true);
        on_cpu(cpu, || drop(blocks(900, 2000)));
        online(false);
        HEAP.drain(Drain::All);
        assert_eq!(HEAP.stats().percpu_cached, 0);
        check(Level::Blocks).expect("everything adds up");
    });
    assert!(online(false), "CPU {last} can be turned off");
    let outcome = Child::new(NAME, &format!("{last}/{node}")).settings("worker:off").run();
    assert!(online(true));
    let outcome = outcome.succeeded();
    println!("CPU {last} of node {node}: {} bytes drained while it was off", outcome.value("drained"));
    assert_eq!(outcome.number("elsewhere"), 0, "blocks on other nodes");
    assert!(outcome.number("drained") > 0);
}
