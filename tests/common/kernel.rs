//! What of the kernel a child process gets to see.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use pcpalloc::{Mode, PcpAlloc};

/// One system call that fails with an error, always or only with this first argument.
#[derive(Clone, Copy, Debug)]
pub struct Refusal {
    pub call: libc::c_long,
    pub argument: Option<u32>,
    pub errno: i32,
}

const MEMBARRIER_PRIVATE_EXPEDITED_RSEQ: u32 = 1 << 7;

impl Refusal {
    pub const fn rseq(errno: i32) -> Self {
        Refusal { call: libc::SYS_rseq, argument: None, errno }
    }

    pub const fn membarrier(errno: i32) -> Self {
        Refusal { call: libc::SYS_membarrier, argument: None, errno }
    }

    /// The fence alone; registering for it succeeds.
    pub const fn fence(errno: i32) -> Self {
        Refusal { call: libc::SYS_membarrier, argument: Some(MEMBARRIER_PRIVATE_EXPEDITED_RSEQ), errno }
    }

    /// The seccomp filter that refuses. Word 0 of `struct seccomp_data` is the number of the call, word 4 the lower
    /// half of its first argument. Jumps count the instructions they pass over.
    fn filter(self) -> [libc::sock_filter; 6] {
        let load = |word: u32| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 4 * word);
        let equal = |value: u32, otherwise: u8| libc::sock_filter {
            jf: otherwise,
            ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value)
        };
        let answer = |value: u32| statement(libc::BPF_RET | libc::BPF_K, value);
        let argument = match self.argument {
            Some(value) => equal(value, 1),
            // A jump to the next instruction.
            None => equal(0, 0),
        };
        [
            load(0),
            equal(self.call as u32, 3),
            load(4),
            argument,
            answer(libc::SECCOMP_RET_ERRNO | self.errno as u32),
            answer(libc::SECCOMP_RET_ALLOW),
        ]
    }

    /// Makes the kernel refuse the call to this thread, to threads it starts and to what it executes, for ever.
    ///
    /// Allocates nothing, so it may run between `fork` and `exec`.
    pub fn install(self) -> io::Result<()> {
        let mut filter = self.filter();
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        // SAFETY: the program and its instructions are valid for the calls, which copy them.
        let refused = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
                || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) != 0
        };
        if refused { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

fn statement(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

/// The kernels that the heap has to get along with.
#[derive(Clone, Copy, Debug)]
pub enum Kernel {
    /// All there is.
    Whole,
    /// The C library registers no rseq area.
    LibcWithoutRseq,
    /// Nobody can register one.
    WithoutRseq(i32),
    /// No fence for other CPUs, which is found out when the heap comes up.
    WithoutMembarrier(i32),
    /// No fence for other CPUs, which is found out when it is needed.
    WithoutFence(i32),
}

impl Kernel {
    /// One for every mode.
    pub const MODES: [Kernel; 3] = [Kernel::Whole, Kernel::LibcWithoutRseq, Kernel::WithoutRseq(libc::ENOSYS)];

    pub fn refusal(self) -> Option<Refusal> {
        match self {
            Kernel::Whole | Kernel::LibcWithoutRseq => None,
            Kernel::WithoutRseq(errno) => Some(Refusal::rseq(errno)),
            Kernel::WithoutMembarrier(errno) => Some(Refusal::membarrier(errno)),
            Kernel::WithoutFence(errno) => Some(Refusal::fence(errno)),
        }
    }

    /// Has the command run on this kernel.
    pub fn apply(self, command: &mut Command) {
        if matches!(self, Kernel::LibcWithoutRseq | Kernel::WithoutRseq(_)) {
            command.env("GLIBC_TUNABLES", "glibc.pthread.rseq=0");
        }
        if let Some(refusal) = self.refusal() {
            // SAFETY: `install` makes two system calls and allocates nothing.
            unsafe { command.pre_exec(move || refusal.install()) };
        }
    }

    /// Ends the test unless the heap, which is up, has chosen the mode that this kernel allows.
    pub fn assert_mode(self) {
        let mode = PcpAlloc::new().stats().mode;
        match self {
            Kernel::WithoutRseq(_) => assert_eq!(mode, Mode::PerThread),
            _ if cfg!(not(target_arch = "x86_64")) => assert_eq!(mode, Mode::PerThread),
            Kernel::LibcWithoutRseq => assert_eq!(mode, Mode::OwnRseq),
            _ if libc_has_registered() => assert_eq!(mode, Mode::LibcRseq),
            _ => assert_ne!(mode, Mode::LibcRseq),
        }
    }
}

/// Whether the C library has an rseq area for this thread, by its own word.
pub fn libc_has_registered() -> bool {
    // SAFETY: the name is a C string and the default scope always valid; glibc defines the symbol as an unsigned int.
    unsafe {
        let size = libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_size".as_ptr()).cast::<u32>();
        !size.is_null() && *size != 0
    }
}

/// Takes the C library's rseq area of this thread away, for good: the kernel then says in it that there is no CPU.
#[cfg(target_arch = "x86_64")]
pub fn unregister_libc_rseq() {
    const UNREGISTER: libc::c_int = 1;
    const SIGNATURE: u32 = 0x5305_3053;
    assert!(libc_has_registered());
    // SAFETY: glibc defines the symbol as a ptrdiff_t; the first word of the thread control block is its own address;
    // glibc registers 32 bytes with this signature. The C library copes with an area that says that there is no CPU.
    let result = unsafe {
        let offset = *libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_offset".as_ptr()).cast::<isize>();
        let thread: usize;
        std::arch::asm!("mov {}, fs:[0]", out(reg) thread, options(nostack, preserves_flags, readonly, pure));
        libc::syscall(libc::SYS_rseq, thread.wrapping_add_signed(offset), 32u32, UNREGISTER, SIGNATURE)
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}
