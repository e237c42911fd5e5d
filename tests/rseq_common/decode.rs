//! Where the instructions of a section begin: as much of x86-64's encoding as sections consist of.
//! (Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, chapter 2 and appendix A.)

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
