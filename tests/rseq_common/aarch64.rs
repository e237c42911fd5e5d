//! What the tests of sections know of aarch64: as much of its encoding as sections consist of.
//! (Arm Architecture Reference Manual for A-profile, chapter C4, "A64 Instruction Set Encoding".)

use std::sync::atomic::AtomicU32;

/// What precedes every abort handler.
pub const SIGNATURE: u32 = 0xd428_bc00;

/// The unit in which code is exchanged for a breakpoint, the breakpoint (`brk #0`), and how far behind it the signal
/// comes.
pub type Unit = AtomicU32;
pub const BREAKPOINT: u32 = 0xd420_0000;
pub const BEHIND_BREAKPOINT: usize = 0;

/// `isb`: changes no register and no flag, and takes its time.
pub const PAUSE: [u8; 4] = 0xd503_3fdf_u32.to_le_bytes();

/// Bytes of a jump as [`jump_to`] makes it.
pub const JUMP_LEN: usize = 4;

/// Where a signal handler's thread goes on.
pub fn goes_on_at(context: &mut libc::ucontext_t) -> &mut u64 {
    &mut context.uc_mcontext.pc
}

/// What is written as data is executed as code, here and elsewhere, once this has returned.
/// (The manual's B2.7.4, "Concurrent modification and execution of instructions".)
pub fn publish(at: usize, len: usize) {
    // Lines of either cache are no shorter than this.
    const LINE: usize = 16;
    // SAFETY: cache maintenance of lines with code of this program changes nothing that memory holds.
    unsafe {
        for line in (at & !(LINE - 1)..at + len).step_by(LINE) {
            std::arch::asm!("dc cvau, {}", in(reg) line, options(nostack, preserves_flags));
        }
        std::arch::asm!("dsb ish", options(nostack, preserves_flags));
        for line in (at & !(LINE - 1)..at + len).step_by(LINE) {
            std::arch::asm!("ic ivau, {}", in(reg) line, options(nostack, preserves_flags));
        }
        std::arch::asm!("dsb ish", "isb", options(nostack, preserves_flags));
    }
}

/// One instruction in memory.
#[derive(Clone, Copy, Debug)]
pub struct Instruction {
    pub at: usize,
    pub len: usize,
    /// The encoding and the target of a conditional jump.
    pub jump: Option<(u32, usize)>,
    /// Whether it writes to memory and nowhere else, as a commit does.
    pub stores: bool,
}

impl Instruction {
    pub fn end(&self) -> usize {
        self.at + self.len
    }
}

/// The instruction at an address. Panics over one that no section contains: then it is to be added here.
///
/// # Safety
/// There is code at the address.
pub unsafe fn decode(at: usize) -> Instruction {
    // SAFETY: the caller's obligation; instructions are aligned.
    let code = unsafe { (at as *const u32).read() };
    let plain = |stores| Instruction { at, len: 4, jump: None, stores };
    // b.cond, cbz and cbnz: 19 bits of distance in words.
    if code & 0xff00_0010 == 0x5400_0000 || code & 0x7e00_0000 == 0x3400_0000 {
        let distance = ((code << 8) as i32 >> 13 << 2) as isize;
        return Instruction { at, len: 4, jump: Some((code, at.wrapping_add_signed(distance))), stores: false };
    }
    // Loads and stores of one register: by an offset in the instruction, before or after a step, by another register.
    if code & 0x3b00_0000 == 0x3900_0000 || code & 0x3b20_0000 == 0x3800_0000 || code & 0x3b20_0c00 == 0x3820_0800 {
        assert!(code & 0x0400_0000 == 0, "{code:08x} at {at:#x}: no vectors");
        // A step changes the register that it starts from.
        let steps = code & 0x3b20_0400 == 0x3800_0400;
        return plain(code & 0x00c0_0000 == 0 && !steps);
    }
    // With an immediate: add, sub, move. With a register: the same, compare and select.
    let computes = matches!(code >> 23 & 0x3f, 0b100010 | 0b100101)
        || matches!(code >> 24 & 0x1f, 0b01010 | 0b01011)
        || code & 0x1fe0_0000 == 0x1a80_0000;
    assert!(computes, "{code:08x} at {at:#x}");
    plain(false)
}

/// Bytes of the instructions by which a section loads the address of its descriptor, before the store that arms it:
/// `adrp t, descriptor; add t, t, :lo12:descriptor`.
pub const LOAD_LEN: usize = 8;

/// Whether those instructions are here and load this address.
///
/// # Safety
/// There is code at `at`.
pub unsafe fn loads(at: usize, address: usize) -> bool {
    if !at.is_multiple_of(4) {
        return false;
    }
    // SAFETY: the caller's obligation; instructions are aligned.
    let [page, offset] = unsafe { (at as *const [u32; 2]).read() };
    let register = page & 31;
    if page & 0x9f00_0000 != 0x9000_0000 || offset & 0xffc0_03ff != 0x9100_0000 | register << 5 | register {
        return false;
    }
    let pages = ((page >> 5 & 0x7_ffff) << 2 | page >> 29 & 3) as i32;
    // 21 bits with a sign, in units of 4 KiB whatever the system's pages are.
    let distance = ((pages << 11 >> 11) as isize) << 12;
    (at & !4095).wrapping_add_signed(distance) + (offset >> 10 & 0xfff) as usize == address
}

/// A jump that lies at `at`.
pub fn jump_to(at: usize, target: usize) -> Vec<u8> {
    let distance = target as isize - at as isize;
    assert!(distance.abs() < 128 << 20, "near enough");
    (0x1400_0000 | (distance >> 2) as u32 & 0x03ff_ffff).to_le_bytes().to_vec()
}

/// The same conditional jump to another target, from `at`. As long whatever the target is: the opposite condition jumps
/// over a jump.
pub fn retarget(instruction: &Instruction, at: usize, target: usize) -> Vec<u8> {
    let (code, _) = instruction.jump.expect("a jump");
    let opposite = if code >> 24 == 0x54 { code ^ 1 } else { code ^ 1 << 24 };
    let over = opposite & !(0x7_ffff << 5) | 2 << 5;
    [over.to_le_bytes().to_vec(), jump_to(at + 4, target)].concat()
}
