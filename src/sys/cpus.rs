//! Which processors and memory nodes there are, read from `/sys` with a buffer on the stack.

use core::ffi::CStr;
use core::sync::atomic::{AtomicU32, Ordering};

use super::{Message, current_cpu, keep_errno};

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
pub(super) fn number(digits: &[u8]) -> Option<usize> {
    let len = digits.iter().take_while(|b| b.is_ascii_digit()).count();
    let value = digits[..len].iter().fold(0usize, |n, d| n.saturating_mul(10).saturating_add((d - b'0') as usize));
    (len > 0).then_some(value)
}

/// One more than the highest processor number this machine can ever have; numbers may be sparse.
///
/// Where `/sys` is missing, what `sysconf`, the processors we may run on and the one that we do run on say. A thread
/// that comes to others later is served, though not from stacks.
pub(crate) fn possible_cpus() -> usize {
    let mut buffer = [0; 1024];
    let mut count = 0;
    ranges(read_file(c"/sys/devices/system/cpu/possible", &mut buffer), |_, last| count = count.max(last + 1));
    if count == 0 {
        // SAFETY: sysconf has no preconditions.
        let configured = keep_errno(|| unsafe { libc::sysconf(libc::_SC_NPROCESSORS_CONF) }).max(1) as usize;
        count = configured.max(current_cpu() + 1).max(allowed_cpus());
    }
    count
}

/// One more than the highest processor number that this thread may run on; 0 if the system does not say.
fn allowed_cpus() -> usize {
    const BITS: usize = u64::BITS as usize;
    let mut set = [0u64; MAX_CPUS / BITS];
    // SAFETY: the set is valid for the length stated, and its words may have any value.
    let bytes =
        keep_errno(|| unsafe { libc::syscall(libc::SYS_sched_getaffinity, 0, size_of_val(&set), set.as_mut_ptr()) });
    let known = &set[..(bytes.max(0) as usize / size_of::<u64>()).min(set.len())];
    known.iter().rposition(|&word| word != 0).map_or(0, |last| (last + 1) * BITS - known[last].leading_zeros() as usize)
}

/// Calls `each` with every memory node that is online; some have no processors, or none that is.
pub(crate) fn each_node(mut each: impl FnMut(usize)) {
    let mut online = [0; 256];
    ranges(read_file(c"/sys/devices/system/node/online", &mut online), |first, last| {
        (first..=last.min(MAX_NODES - 1)).for_each(&mut each);
    });
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

/// Calls `each` with every processor that is online and the number of the third-level cache that it has: one cache after the
/// other, numbered in the order of their first processors. With none where the system says nothing of caches.
pub(crate) fn each_cpu_of_cache(each: impl FnMut(usize, usize)) {
    let mut online = [0; 1024];
    let online = read_file(c"/sys/devices/system/cpu/online", &mut online);
    let sharers = |cpu: usize, buffer: &mut [u8]| {
        let mut path = Message::new();
        path.text("/sys/devices/system/cpu/cpu").decimal(cpu).text("/cache/index3/shared_cpu_list\0");
        CStr::from_bytes_with_nul(path.as_bytes()).map_or(0, |path| read_file(path, buffer).len())
    };
    group_by_cache(online, sharers, each);
}

/// As [`each_cpu_of_cache`]; `sharers` writes who has a processor's cache, as a kernel list, and returns the bytes. It is asked
/// once for every cache.
fn group_by_cache(
    online: &[u8],
    mut sharers: impl FnMut(usize, &mut [u8]) -> usize,
    mut each: impl FnMut(usize, usize),
) {
    const BITS: usize = u64::BITS as usize;
    let mut known = [0u64; MAX_CPUS / BITS];
    let mut count = 0;
    ranges(online, |first, last| {
        for cpu in first..=last.min(MAX_CPUS - 1) {
            if known[cpu / BITS] >> (cpu % BITS) & 1 != 0 {
                continue;
            }
            let mut buffer = [0; 1024];
            let len = sharers(cpu, &mut buffer);
            let mut is_there = false;
            ranges(&buffer[..len], |first, last| {
                for sharer in first..=last.min(MAX_CPUS - 1) {
                    known[sharer / BITS] |= 1 << (sharer % BITS);
                    each(sharer, count);
                    is_there |= sharer == cpu;
                }
            });
            count += usize::from(is_there);
        }
    });
}

/// How far each node that has memory or processors is from `node`, in the kernel's unit of ten for none; `u8::MAX` for
/// the others, and for all where the kernel says nothing.
pub(crate) fn node_distances(node: usize) -> [u8; MAX_NODES] {
    let mut distances = [u8::MAX; MAX_NODES];
    let mut path = Message::new();
    path.text("/sys/devices/system/node/node").decimal(node).text("/distance\0");
    let (mut online, mut list) = ([0; 1024], [0; 4096]);
    let Ok(path) = CStr::from_bytes_with_nul(path.as_bytes()) else { return distances };
    // The distances are those of the nodes that are online, in their order.
    let mut given = read_file(path, &mut list).split(|b| b.is_ascii_whitespace()).filter_map(number);
    ranges(read_file(c"/sys/devices/system/node/online", &mut online), |first, last| {
        for node in first..=last {
            let distance = given.next().map_or(u8::MAX, |distance| distance.min(u8::MAX as usize) as u8);
            let known = &mut distances[node.min(MAX_NODES - 1)];
            *known = (*known).min(distance);
        }
    });
    distances
}

/// The processor this thread runs on and its memory node, by the kernel's word. Costs a system call.
pub(crate) fn current_cpu_and_node() -> Option<(usize, usize)> {
    let (mut cpu, mut node) = (0u32, 0u32);
    // SAFETY: both are valid for the write; the third argument is not used any more. With these the call cannot fail, so
    // that errno stays as it is, but for sandboxes.
    let known = super::keep_errno(|| unsafe {
        libc::syscall(libc::SYS_getcpu, &raw mut cpu, &raw mut node, core::ptr::null_mut::<libc::c_void>()) == 0
    });
    known.then(|| (cpu as usize, (node as usize).min(MAX_NODES - 1)))
}

/// Whether a node has memory, as the system says when this is first asked; node 0 has where it says nothing.
pub(crate) fn node_has_memory(node: usize) -> bool {
    const KNOWN: u32 = 1 << 31;
    static NODES: AtomicU32 = AtomicU32::new(0);
    const _: () = assert!(MAX_NODES < 31);
    // Relaxed: the value is the whole of what is passed on, and whoever finds it missing finds the same.
    let mut nodes = NODES.load(Ordering::Relaxed);
    if nodes == 0 {
        let mut buffer = [0; 256];
        ranges(read_file(c"/sys/devices/system/node/has_memory", &mut buffer), |first, last| {
            (first..=last.min(MAX_NODES - 1)).for_each(|node| nodes |= 1 << node);
        });
        nodes = KNOWN | if nodes == 0 { 1 } else { nodes };
        NODES.store(nodes, Ordering::Relaxed);
    }
    node < MAX_NODES && nodes & (1 << node) != 0
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
        assert!(allowed_cpus() > current_cpu() && allowed_cpus() <= possible_cpus());
    }

    /// Processors that have a cache in common are of one number, also where threads of a core are numbered far apart; one that
    /// the system says nothing of has none.
    ///
    /// Red if a cache's list is read for the processor alone: in `group_by_cache`, call `each` with `cpu` in place of `sharer`;
    /// if it is read once more for the next one: leave out `known`.
    #[test]
    fn caches_are_told_apart() {
        fn groups(online: &str, caches: &[&str]) -> (Vec<(usize, usize)>, usize) {
            let (mut found, mut asked) = (Vec::new(), 0);
            let sharers = |cpu: usize, buffer: &mut [u8]| {
                asked += 1;
                let has = |list: &&&str| {
                    let mut has = false;
                    ranges(list.as_bytes(), |first, last| has |= (first..=last).contains(&cpu));
                    has
                };
                let list = caches.iter().find(has).map_or(&b""[..], |list| list.as_bytes());
                buffer[..list.len()].copy_from_slice(list);
                list.len()
            };
            group_by_cache(online.as_bytes(), sharers, |cpu, group| found.push((cpu, group)));
            found.sort_unstable();
            (found, asked)
        }
        let pairs = |groups: &[usize]| groups.iter().copied().enumerate().collect::<Vec<_>>();
        assert_eq!(groups("0-1\n", &["0-1\n"]), (pairs(&[0, 0]), 1));
        assert_eq!(groups("0-7\n", &["0-1,4-5\n", "2-3,6-7\n"]), (pairs(&[0, 0, 1, 1, 0, 0, 1, 1]), 2));
        assert_eq!(groups("0-3\n", &[]), (Vec::new(), 4));
        assert_eq!(groups("0,2-3\n", &["0\n", "3\n"]).0, [(0, 0), (3, 1)]);
        assert_eq!(groups("0-3\n", &["0\n", "1\n", "2\n", "3\n"]), (pairs(&[0, 1, 2, 3]), 4));
    }
}
