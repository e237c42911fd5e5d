//! Seccomp filters, written as the kernel reads them.

use std::io;

const fn statement(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

const fn if_equal(k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, jt, jf, k }
}

/// Loads the number of the system call; the binary is of one architecture, so that is not looked at.
const LOAD: libc::sock_filter = statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0);

const fn answer(action: u32) -> libc::sock_filter {
    statement(libc::BPF_RET | libc::BPF_K, action)
}

fn install(program: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    // SAFETY: the program lives through the calls, which copy it.
    unsafe {
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
            || libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &program) != 0
        {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// From now on, and after an `exec`, `rseq` does not exist.
pub fn refuse_rseq() -> io::Result<()> {
    install(&[
        LOAD,
        if_equal(libc::SYS_rseq as u32, 0, 1),
        answer(libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
        answer(libc::SECCOMP_RET_ALLOW),
    ])
}

/// From now on, any system call of this thread but the ends of threads and processes kills the process.
pub fn kill_on_any_call() -> io::Result<()> {
    install(&[
        LOAD,
        if_equal(libc::SYS_exit as u32, 2, 0),
        if_equal(libc::SYS_exit_group as u32, 1, 0),
        answer(libc::SECCOMP_RET_KILL_PROCESS),
        answer(libc::SECCOMP_RET_ALLOW),
    ])
}
