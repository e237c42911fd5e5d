//! What the tests of sections know of x86-64: as much of its encoding as sections consist of.
//! (Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, chapter 2 and appendix A.)

use std::sync::atomic::AtomicU8;

/// What precedes every abort handler.
pub const SIGNATURE: u32 = 0x5305_3053;

/// The unit in which code is exchanged for a breakpoint, the breakpoint, and how far behind it the signal comes.
pub type Unit = AtomicU8;
pub const BREAKPOINT: u8 = 0xcc;
pub const BEHIND_BREAKPOINT: usize = 1;

/// Changes no register and no flag, and takes its time.
pub const PAUSE: [u8; 2] = [0xf3, 0x90];

/// Bytes of a jump as [`jump_to`] makes it.
pub const JUMP_LEN: usize = 5;

/// Where a signal handler's thread goes on.
pub fn goes_on_at(context: &mut libc::ucontext_t) -> &mut i64 {
    &mut context.uc_mcontext.gregs[libc::REG_RIP as usize]
}

/// What is written as data is executed as code.
pub fn publish(_at: usize, _len: usize) {}

/// Bytes of the instructions by which a section loads the address of its descriptor, before the store that arms it:
/// `lea t, [rip + descriptor]`.
pub const LOAD_LEN: usize = 7;

/// Whether those instructions are here and load this address.
///
/// # Safety
/// There is code at `at`.
pub unsafe fn loads(at: usize, address: usize) -> bool {
    // SAFETY: the caller's obligation.
    let code: [u8; LOAD_LEN] = unsafe { (at as *const [u8; LOAD_LEN]).read_unaligned() };
    let relative = i32::from_le_bytes(code[3..].try_into().unwrap());
    code[0] & 0xfb == 0x48
        && code[1] == 0x8d
        && code[2] & 0xc7 == 5
        && (at + LOAD_LEN).wrapping_add_signed(relative as isize) == address
}

/// A jump that lies at `at`.
pub fn jump_to(at: usize, target: usize) -> Vec<u8> {
    relative(&[0xe9], at, target)
}

/// The same conditional jump to another target, from `at`. As long whatever the target is.
pub fn retarget(instruction: &Instruction, at: usize, target: usize) -> Vec<u8> {
    let (condition, _) = instruction.jump.expect("a jump");
    relative(&[0x0f, 0x80 | condition], at, target)
}

fn relative(opcode: &[u8], at: usize, target: usize) -> Vec<u8> {
    let distance = target as isize - (at + opcode.len() + 4) as isize;
    [opcode, &i32::try_from(distance).expect("near enough").to_le_bytes()].concat()
}

/// One instruction in memory.
#[derive(Clone, Copy, Debug)]
pub struct Instruction {
    pub at: usize,
    pub len: usize,
    /// The condition's number and the target of a conditional jump.
    pub jump: Option<(u8, usize)>,
    /// Whether it writes to memory.
    pub stores: bool,
    /// Whether it sets or reads the flags, or both.
    pub flags: bool,
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
    // SAFETY: the caller's obligation; no instruction is longer, and pages of code are followed by more of the program.
    let code: [u8; 15] = unsafe { (at as *const [u8; 15]).read_unaligned() };
    let mut i = 0;
    while matches!(code[i], 0x2e | 0x3e | 0x64 | 0x66 | 0xf2 | 0xf3) {
        i += 1;
    }
    let rex = if code[i] & 0xf0 == 0x40 { code[i] } else { 0 };
    i += (rex != 0) as usize;
    let opcode = code[i];
    i += 1;
    let second = code[i];
    // Operands in memory, bytes of immediate, stores to the first operand, flags.
    let (modrm, immediate, stores, flags) = match opcode {
        0x0f => match second {
            // movups, from memory and to it; a long nop.
            0x10 => (true, 0, false, false),
            0x11 => (true, 0, true, false),
            0x1f => (true, 0, false, false),
            0x40..=0x4f => (true, 0, false, true),
            0x80..=0x8f => {
                let relative = i32::from_le_bytes(code[i + 1..i + 5].try_into().unwrap());
                return jump(at, i + 5, second & 15, relative);
            }
            _ => panic!("0f {second:02x} at {at:#x}: {code:02x?}"),
        },
        0x70..=0x7f => return jump(at, i + 1, opcode & 15, second as i8 as i32),
        // add, sub, xor; the forms with a register first do not store.
        0x01 | 0x29 | 0x31 => (true, 0, true, true),
        0x03 | 0x2b | 0x33 | 0x39 | 0x3b | 0x85 => (true, 0, false, true),
        // add, sub and cmp with an immediate; the last, number 7, does not store.
        0x81 => (true, 4, second >> 3 & 7 != 7, true),
        0x83 => (true, 1, second >> 3 & 7 != 7, true),
        // shr by an immediate, and such.
        0xc1 => (true, 1, true, true),
        0xff => (true, 0, true, true),
        0x63 | 0x8b | 0x8d => (true, 0, false, false),
        0x88 | 0x89 => (true, 0, true, false),
        0xc7 => (true, 4, true, false),
        0xb8..=0xbf if rex & 8 == 0 => (false, 4, false, false),
        0x90 => (false, 0, false, false),
        _ => panic!("{opcode:02x} at {at:#x}: {code:02x?}"),
    };
    i += (opcode == 0x0f) as usize;
    let mut in_memory = false;
    if modrm {
        let byte = code[i];
        i += 1;
        let (mode, register) = (byte >> 6, byte & 7);
        in_memory = mode != 3;
        let mut displacement = [0, 1, 4, 0][mode as usize];
        if in_memory && register == 4 {
            if mode == 0 && code[i] & 7 == 5 {
                displacement = 4;
            }
            i += 1;
        } else if mode == 0 && register == 5 {
            assert_eq!(opcode, 0x8d, "a section addresses nothing from where it lies: it can be moved");
            displacement = 4;
        }
        i += displacement;
    }
    Instruction { at, len: i + immediate, jump: None, stores: stores && in_memory, flags }
}

fn jump(at: usize, len: usize, condition: u8, relative: i32) -> Instruction {
    let target = at.wrapping_add(len).wrapping_add_signed(relative as isize);
    Instruction { at, len, jump: Some((condition, target)), stores: false, flags: true }
}
