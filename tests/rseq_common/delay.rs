//! Sections that take their time: the section's own instructions, copied elsewhere with pauses between them, and a
//! jump to the copy where it was. The descriptor is made to name the copy, so the kernel guards that instead.
//!
//! ```text
//! load the descriptor's address   copy:  store it             # armed again, so that the jump need not be guarded
//! store it                        start: pause …
//! jump to copy     ───────►              first instruction
//!      …                                 pause …
//!                                        …
//!                                        commit
//! end:             ◄───────       end:   jump to end
//! ```
//!
//! A pause changes no register and no flag, and takes tens of nanoseconds. To be done while one thread runs.

use std::sync::atomic::Ordering;

use super::arch::{JUMP_LEN, PAUSE, jump_to, publish, retarget};
use super::{Section, make_writable};

/// What is done to a section besides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fault {
    /// Instructions at its start that it does not cover.
    pub late: usize,
    /// Whether it reaches beyond its commit, and takes its time there.
    pub long: bool,
}

/// Memory for code, near enough to the program's for a jump.
struct Code {
    start: usize,
    bytes: Vec<u8>,
}

impl Code {
    const LEN: usize = 64 << 10;

    fn near(at: usize) -> Code {
        let rights = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        let start = (1..1000).map(|n| (at & !0xf_ffff) - (n << 20)).find(|&hint| {
            // SAFETY: a new mapping that replaces none.
            let found = unsafe { libc::mmap(hint as *mut libc::c_void, Code::LEN, rights, flags, -1, 0) };
            found as usize == hint
        });
        Code { start: start.expect("there is room in front of the program"), bytes: Vec::new() }
    }

    fn here(&self) -> usize {
        self.start + self.bytes.len()
    }
}

/// Has the section pause before its instructions, `pauses` times before the first and so on.
pub fn slow_down(section: &Section, pauses: impl Fn(usize) -> usize, fault: Fault) {
    let mut code = Code::near(section.armed);
    let original = |at: usize, len: usize| {
        // SAFETY: instructions of this program.
        unsafe { std::slice::from_raw_parts(at as *const u8, len) }
    };
    code.bytes.extend_from_slice(original(section.arm.at, section.arm.len));
    let mut places = Vec::new();
    // Jumps to places that follow are filled in afterwards.
    let mut pending = Vec::new();
    for (number, instruction) in section.instructions.iter().enumerate() {
        places.push((instruction.at, code.here()));
        (0..pauses(number)).for_each(|_| code.bytes.extend_from_slice(&PAUSE));
        match instruction.jump {
            None => code.bytes.extend_from_slice(original(instruction.at, instruction.len)),
            Some((_, target)) => {
                pending.push((code.bytes.len(), instruction, target));
                let jump = retarget(instruction, code.here(), section.end);
                code.bytes.extend_from_slice(&jump);
            }
        }
    }
    let end = code.here();
    // So that a section that is too long is so for long: a single instruction is hardly ever interrupted.
    (0..if fault.long { 15 } else { 0 }).for_each(|_| code.bytes.extend_from_slice(&PAUSE));
    let back = jump_to(code.here(), section.end);
    code.bytes.extend_from_slice(&back);
    let covered_end = if fault.long { code.here() } else { end };
    for (at, instruction, target) in pending {
        let place = places.iter().find(|(from, _)| *from == target).map_or(target, |(_, to)| *to);
        let jump = retarget(instruction, code.start + at, place);
        code.bytes[at..at + jump.len()].copy_from_slice(&jump);
    }
    assert!(code.bytes.len() <= Code::LEN);
    // SAFETY: the mapping is as long, and nobody executes it yet.
    unsafe { (code.start as *mut u8).copy_from_nonoverlapping(code.bytes.as_ptr(), code.bytes.len()) };
    publish(code.start, code.bytes.len());

    let jump = jump_to(section.armed, code.start);
    let covered = section.armed + 1..section.armed + JUMP_LEN;
    let is_target = |i: &super::Instruction| i.jump.is_some_and(|(_, target)| covered.contains(&target));
    assert!(section.instructions.len() > 2 && covered.end < section.end && !section.instructions.iter().any(is_target));
    make_writable(section.armed, JUMP_LEN);
    // What it did not cover before it does not cover now.
    let uncovered = section.instructions.iter().position(|i| i.at == section.start).expect("a section starts in it");
    let start = places[uncovered + fault.late].1;
    let descriptor = section.descriptor();
    descriptor.start.store(start as u64, Ordering::Relaxed);
    descriptor.len.store((covered_end - start) as u64, Ordering::Relaxed);
    // SAFETY: instructions of this program, in pages made writable, which nobody executes meanwhile.
    unsafe { (section.armed as *mut u8).copy_from_nonoverlapping(jump.as_ptr(), JUMP_LEN) };
    publish(section.armed, JUMP_LEN);
}
