//! What of the kernel a child process gets to see.

#[cfg(not(target_feature = "crt-static"))]
use std::ffi::CStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use pcpalloc::{Mode, PcpAlloc};

/// One system call that is answered by a filter, always or only with this argument.
#[derive(Clone, Copy, Debug)]
pub struct Refusal {
    call: libc::c_long,
    /// Which argument, from 0, and its lower half.
    argument: Option<(usize, u32)>,
    /// What the filter says then.
    answer: u32,
}

const MEMBARRIER_PRIVATE_EXPEDITED_RSEQ: u32 = 1 << 7;

impl Refusal {
    /// The call fails with this error.
    pub const fn of(call: libc::c_long, errno: i32) -> Self {
        Refusal { call, argument: None, answer: libc::SECCOMP_RET_ERRNO | errno as u32 }
    }

    pub const fn rseq(errno: i32) -> Self {
        Self::of(libc::SYS_rseq, errno)
    }

    pub const fn membarrier(errno: i32) -> Self {
        Self::of(libc::SYS_membarrier, errno)
    }

    /// The fence alone; registering for it succeeds.
    pub const fn fence(errno: i32) -> Self {
        Self::membarrier(errno).when(0, MEMBARRIER_PRIVATE_EXPEDITED_RSEQ)
    }

    /// Only with this argument, counted from 0.
    pub const fn when(self, argument: usize, value: u32) -> Self {
        Refusal { argument: Some((argument, value)), ..self }
    }

    /// Not an error, but the end of the process.
    pub const fn killing(self) -> Self {
        Refusal { answer: libc::SECCOMP_RET_KILL_PROCESS, ..self }
    }

    /// Not an error, but a question to whoever listens for it.
    pub const fn asking(self) -> Self {
        Refusal { answer: libc::SECCOMP_RET_USER_NOTIF, ..self }
    }

    /// The seccomp filter that refuses. Word 0 of `struct seccomp_data` is the number of the call, word 4 the lower
    /// half of its first argument, word 6 of its second. Jumps count the instructions they pass over.
    pub fn filter(self) -> [libc::sock_filter; 6] {
        let load = |word: u32| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 4 * word);
        let equal = |value: u32, otherwise: u8| libc::sock_filter {
            jf: otherwise,
            ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value)
        };
        let answer = |value: u32| statement(libc::BPF_RET | libc::BPF_K, value);
        let (number, argument) = match self.argument {
            Some((number, value)) => (number, equal(value, 1)),
            // A jump to the next instruction.
            None => (0, equal(0, 0)),
        };
        [
            load(0),
            equal(self.call as u32, 3),
            load(4 + 2 * number as u32),
            argument,
            answer(self.answer),
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

/// Whether the heap has restartable sequences for this processor.
pub const SECTIONS: bool = cfg!(any(target_arch = "x86_64", target_arch = "aarch64"));

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
            _ if !SECTIONS => assert_eq!(mode, Mode::PerThread),
            Kernel::LibcWithoutRseq => assert_eq!(mode, Mode::OwnRseq),
            _ if libc_has_registered() => assert_eq!(mode, Mode::LibcRseq),
            _ => assert_ne!(mode, Mode::LibcRseq),
        }
    }
}

/// The address of a variable of the C library's, or null: by name, or in a static program from the linker.
#[cfg(not(target_feature = "crt-static"))]
fn libc_rseq() -> (*const u32, *const isize) {
    // SAFETY: the names are C strings and the default scope always valid.
    unsafe {
        let find = |name: &CStr| libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr());
        (find(c"__rseq_size").cast(), find(c"__rseq_offset").cast())
    }
}

#[cfg(target_feature = "crt-static")]
fn libc_rseq() -> (*const u32, *const isize) {
    mod words {
        std::arch::global_asm!(
            ".pushsection .data.rel.ro.test_libc_rseq,\"aw\",@progbits",
            ".balign 8",
            ".weak __rseq_size, __rseq_offset",
            ".globl test_libc_rseq",
            "test_libc_rseq: .quad __rseq_size, __rseq_offset",
            ".popsection",
        );
    }
    unsafe extern "C" {
        static test_libc_rseq: [usize; 2];
    }
    // SAFETY: defined above; the linker, or the program's start, has filled it in.
    let [size, offset] = unsafe { test_libc_rseq };
    (size as *const u32, offset as *const isize)
}

/// Whether the C library has an rseq area for this thread, by its own word.
pub fn libc_has_registered() -> bool {
    let (size, _) = libc_rseq();
    // SAFETY: glibc defines the symbol as an unsigned int.
    !size.is_null() && unsafe { *size } != 0
}

/// Whether the C library is one that registers areas unless told not to.
pub fn libc_knows_rseq() -> bool {
    !libc_rseq().0.is_null()
}

/// This thread's rseq area as the C library registered it.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub fn libc_rseq_area() -> *mut u8 {
    assert!(libc_has_registered());
    // SAFETY: glibc defines the symbol as a ptrdiff_t; the thread pointer is the first word of the thread control block on
    // x86-64, and a register on aarch64.
    unsafe {
        let offset = *libc_rseq().1;
        let thread: usize;
        #[cfg(target_arch = "aarch64")]
        std::arch::asm!("mrs {}, tpidr_el0", out(reg) thread, options(nostack, preserves_flags, nomem, pure));
        #[cfg(target_arch = "x86_64")]
        std::arch::asm!("mov {}, fs:[0]", out(reg) thread, options(nostack, preserves_flags, readonly, pure));
        thread.wrapping_add_signed(offset) as *mut u8
    }
}

/// Takes the C library's rseq area of this thread away, for good: the kernel then says in it that there is no CPU.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub fn unregister_libc_rseq() {
    const UNREGISTER: libc::c_int = 1;
    const SIGNATURE: u32 = if cfg!(target_arch = "x86_64") { 0x5305_3053 } else { 0xd428_bc00 };
    let area = libc_rseq_area();
    // SAFETY: glibc defines the symbol as an unsigned int; it registers with this signature, and 32 bytes unless it says more.
    // The C library copes with an area that says that there is no CPU.
    let result = unsafe {
        let len = (*libc_rseq().0).max(32);
        libc::syscall(libc::SYS_rseq, area, len, UNREGISTER, SIGNATURE)
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}
