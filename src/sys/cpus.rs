//! Which processors and memory nodes there are, read from `/sys` with a buffer on the stack.

use core::ffi::CStr;

use super::{Message, current_cpu};

/// The most processors a kernel can be built for on any architecture (`NR_CPUS`), and so the length of
/// tables indexed by processor.
pub(crate) const MAX_CPUS: usize = 8192;

/// The most memory nodes that are told apart; further ones share the last.
pub(crate) const MAX_NODES: usize = 8;

/// Contents of a small file, or an empty slice.
pub(crate) fn read_file<'a>(path: &CStr, buffer: &'a mut [u8]) -> &'a [u8] {
    // SAFETY: the path is a C string, the buffer is valid for its length, and the descriptor is closed by
    // whoever opened it.
    unsafe {
        let errno = libc::__errno_location();
        let before = *errno;
        let file = libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        let mut len = 0;
        if file >= 0 {
            while len < buffer.len() {
                match libc::read(file, buffer.as_mut_ptr().add(len).cast(), buffer.len() - len) {
                    n if n > 0 => len += n as usize,
                    _ => break,
                }
            }
            libc::close(file);
        }
        *errno = before;
        &buffer[..len]
    }
}

/// Adds the name of a thread of this process to a line, or `?`.
pub(crate) fn name_thread(id: u32, line: &mut Message) {
    let mut path = Message::new();
    path.text("/proc/self/task/").decimal(id as usize).text("/comm\0");
    let mut buffer = [0; 32];
    let name = CStr::from_bytes_with_nul(path.as_bytes()).map_or(&b""[..], |path| read_file(path, &mut buffer));
    let name = core::str::from_utf8(name.strip_suffix(b"\n").unwrap_or(name)).unwrap_or("");
    line.text(if name.is_empty() { "?" } else { name });
}

/// Calls `each` with every range of a kernel list such as `0-3,8,10-11`.
fn ranges(list: &[u8], mut each: impl FnMut(usize, usize)) {
    for part in list.split(|&b| b == b',') {
        let mut ends = part.split(|&b| b == b'-').map(number);
        if let Some(Some(first)) = ends.next() {
            let last = ends.next().flatten().unwrap_or(first);
            each(first, last);
        }
    }
}

/// The decimal number a slice starts with.
fn number(digits: &[u8]) -> Option<usize> {
    let len = digits.iter().take_while(|b| b.is_ascii_digit()).count();
    let value = digits[..len].iter().fold(0usize, |n, d| n.saturating_mul(10).saturating_add((d - b'0') as usize));
    (len > 0).then_some(value)
}

/// One more than the highest processor number this machine can ever have; numbers may be sparse.
///
/// Where `/sys` is missing, what `sysconf` and the processor we run on say.
pub(crate) fn possible_cpus() -> usize {
    let mut buffer = [0; 1024];
    let mut count = 0;
    ranges(read_file(c"/sys/devices/system/cpu/possible", &mut buffer), |_, last| count = count.max(last + 1));
    if count == 0 {
        // SAFETY: sysconf has no preconditions.
        let configured = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_CONF) }.max(1) as usize;
        count = configured.max(current_cpu() + 1);
    }
    count
}

/// Calls `each` with every pair of a processor and its memory node, unless there is just one node.
pub(crate) fn each_cpu_of_node(mut each: impl FnMut(usize, usize)) {
    let mut nodes = [0; 256];
    let mut highest = 0;
    ranges(read_file(c"/sys/devices/system/node/possible", &mut nodes), |_, last| highest = highest.max(last));
    if highest == 0 {
        return;
    }
    for node in 0..=highest.min(1023) {
        let mut path = Message::new();
        path.text("/sys/devices/system/node/node").decimal(node).text("/cpulist\0");
        let mut buffer = [0; 1024];
        if let Ok(path) = CStr::from_bytes_with_nul(path.as_bytes()) {
            ranges(read_file(path, &mut buffer), |first, last| {
                (first..=last.min(MAX_CPUS - 1)).for_each(|cpu| each(cpu, node.min(MAX_NODES - 1)));
            });
        }
    }
}

/// Asks that memory of the range, not touched so far, come from `node`; a preference, never a failure.
///
/// # Safety
/// The range is mapped and belongs to the caller.
pub(crate) unsafe fn prefer_node(start: core::ptr::NonNull<u8>, len: usize, node: usize) {
    const MPOL_PREFERRED: usize = 1;
    let mask = 1u64 << node.min(63);
    // SAFETY: the mask is valid for the 64 bits stated; the policy moves no memory.
    unsafe {
        let errno = libc::__errno_location();
        let before = *errno;
        libc::syscall(libc::SYS_mbind, start.as_ptr(), len, MPOL_PREFERRED, &mask, 64usize, 0usize);
        *errno = before;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expand(list: &[u8]) -> Vec<(usize, usize)> {
        let mut out = Vec::new();
        ranges(list, |first, last| out.push((first, last)));
        out
    }

    #[test]
    fn kernel_lists_are_read() {
        assert_eq!(expand(b"0-1\n"), [(0, 1)]);
        assert_eq!(expand(b"0\n"), [(0, 0)]);
        assert_eq!(expand(b"0-3,8,10-11\n"), [(0, 3), (8, 8), (10, 11)]);
        assert_eq!(expand(b"\n"), []);
        assert_eq!(expand(b""), []);
    }

    #[test]
    fn this_machine_has_the_processor_we_run_on() {
        assert!(possible_cpus() > current_cpu());
    }
}
