//! The restartable sequences that are in this program: where they lie, a trap at any instruction of one, and
//! copies of them that take their time.
#![allow(dead_code)]

#[cfg_attr(target_arch = "x86_64", path = "x86_64.rs")]
#[cfg_attr(target_arch = "aarch64", path = "aarch64.rs")]
pub mod arch;
pub mod delay;
pub mod storm;
pub mod trap;

use std::sync::atomic::{AtomicU64, Ordering};

use arch::{Instruction, decode};

/// What the kernel reads (`struct rseq_cs` of its `uapi/linux/rseq.h`). It lies in memory that can be written.
#[repr(C, align(32))]
pub struct Descriptor {
    version_and_flags: u64,
    pub start: AtomicU64,
    pub len: AtomicU64,
    pub abort: AtomicU64,
}

/// Where the sections' descriptors are: the ELF section `__rseq_cs`, whose ends the linker names.
fn descriptors() -> &'static [Descriptor] {
    unsafe extern "C" {
        #[link_name = "__start___rseq_cs"]
        static START: [Descriptor; 0];
        #[link_name = "__stop___rseq_cs"]
        static STOP: [Descriptor; 0];
    }
    let (start, stop) = ((&raw const START).cast::<Descriptor>(), (&raw const STOP).cast::<Descriptor>());
    // SAFETY: the section holds descriptors and nothing else, one behind the other, for as long as the program runs.
    unsafe { std::slice::from_raw_parts(start, (stop as usize - start as usize) / size_of::<Descriptor>()) }
}

/// A section as its descriptor has it, and as its code has it.
#[derive(Clone, Debug)]
pub struct Section {
    pub descriptor: usize,
    pub start: usize,
    pub end: usize,
    pub abort: usize,
    /// Behind the store that names the descriptor: from here on whoever comes between must be noticed.
    pub armed: usize,
    /// That store.
    pub arm: Instruction,
    /// From `armed` to `end`.
    pub instructions: Vec<Instruction>,
}

impl Section {
    pub fn descriptor(&self) -> &'static Descriptor {
        descriptors().iter().find(|d| *d as *const Descriptor as usize == self.descriptor).expect("one of them")
    }

    fn read(descriptor: &'static Descriptor) -> Section {
        let address = descriptor as *const Descriptor as usize;
        let [start, len, abort] =
            [&descriptor.start, &descriptor.len, &descriptor.abort].map(|word| word.load(Ordering::Relaxed) as usize);
        // SAFETY: code of this program, a little before a section's start.
        let loads_descriptor = |at: usize| unsafe { arch::loads(at, address) };
        let load = (start - 64..start).rev().find(|&at| loads_descriptor(at)).expect("the section is armed");
        // SAFETY: code, here and below: it follows on an instruction, and a section is made of instructions.
        let arm = unsafe { decode(load + arch::LOAD_LEN) };
        assert!(arm.stores, "{arm:x?} names the descriptor to the kernel");
        let mut instructions = Vec::new();
        let mut at = arm.end();
        while at < start + len {
            // SAFETY: as above.
            let instruction = unsafe { decode(at) };
            at = instruction.end();
            instructions.push(instruction);
        }
        assert_eq!(at, start + len, "the section ends with an instruction");
        Section { descriptor: address, start, end: start + len, abort, armed: arm.end(), arm, instructions }
    }

    /// What is wrong with how the section is laid out, if anything.
    pub fn fault(&self) -> Option<&'static str> {
        let (last, others) = self.instructions.split_last()?;
        if self.armed != self.start {
            return Some("it starts late");
        }
        if !last.stores || last.jump.is_some() {
            return Some("its last instruction is not the commit");
        }
        let inside = |target| (self.start..self.end).contains(&target);
        let begins = |target| self.instructions.iter().any(|i| i.at == target);
        if others.iter().any(|i| i.jump.is_some_and(|(_, target)| inside(target) && !begins(target))) {
            return Some("it jumps into the middle of an instruction");
        }
        // SAFETY: the signature precedes every abort handler.
        let signature = unsafe { ((self.abort - 4) as *const u32).read_unaligned() };
        if signature != arch::SIGNATURE || (self.start..self.end).contains(&self.abort) {
            return Some("its abort handler is not one");
        }
        None
    }
}

/// The sections of this program.
pub fn sections() -> Vec<Section> {
    descriptors().iter().map(Section::read).collect()
}

/// Makes code of this program writable.
pub fn make_writable(at: usize, len: usize) {
    // SAFETY: sysconf has no preconditions.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
    let (start, end) = (at & !(page - 1), (at + len).next_multiple_of(page));
    let rights = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    // SAFETY: pages of code; more rights invalidate nothing.
    assert_eq!(unsafe { libc::mprotect(start as *mut libc::c_void, end - start, rights) }, 0);
}
