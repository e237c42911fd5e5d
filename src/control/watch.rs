//! Watches what the system says of memory, if asked to: the limits of the process's control group, and pressure stall
//! information (PSI).
//!
//! ```text
//! once a second:       for the group and those above it: memory.current − inactive_file > 15/16 of memory.max or
//!                      memory.high (v1: the same under its own names)  ⇒  memory is short
//! at a PSI trigger:    tasks waited for memory a tenth of two seconds   ⇒  memory is short
//! ```
//!
//! Run by the worker, on files opened by path with buffers on its stack; nothing is allocated. A file that is missing
//! or unreadable, now or later, watches nothing and harms nothing.

use core::cell::UnsafeCell;
use core::ffi::CStr;
use core::sync::atomic::{AtomicUsize, Ordering};
use core::time::Duration;

use crate::sys::{self, Trigger};

/// Whose limits are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cgroup {
    Off,
    /// Those of the group the process is in, and of the groups above it.
    Own,
    /// Those in this directory.
    At(&'static [u8]),
}

/// Longest path of a control group that is watched.
const PATH_MAX: usize = 512;

/// A path of a directory, with room for a file's name.
#[derive(Clone, Copy)]
struct Path {
    bytes: [u8; PATH_MAX],
    len: usize,
}

impl Path {
    const EMPTY: Path = Path { bytes: [0; PATH_MAX], len: 0 };

    /// `None` if they are too long together.
    fn join(parts: &[&[u8]]) -> Option<Path> {
        let mut path = Path::EMPTY;
        parts.iter().all(|part| path.append(part)).then_some(path)
    }

    /// False, and as it was, if there is no room. A byte of 0 always follows.
    fn append(&mut self, part: &[u8]) -> bool {
        match self.bytes.get_mut(self.len..self.len + part.len() + 1) {
            Some(room) => {
                room[..part.len()].copy_from_slice(part);
                room[part.len()] = 0;
                self.len += part.len();
                true
            }
            None => false,
        }
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Calls `f` with the path of a file in the directory.
    fn with_file<R>(&self, name: &[u8], f: impl FnOnce(&CStr) -> R) -> Option<R> {
        let mut file = *self;
        if !file.append(b"/") || !file.append(name) {
            return None;
        }
        CStr::from_bytes_until_nul(&file.bytes).ok().map(f)
    }

    /// The directory above, unless that is shorter than `root` bytes.
    fn parent(&self, root: usize) -> Option<Path> {
        let slash = self.bytes().iter().rposition(|&byte| byte == b'/')?;
        let mut path = *self;
        path.bytes[slash] = 0;
        path.len = slash;
        (slash >= root).then_some(path)
    }
}

#[derive(Clone, Copy)]
struct Settings {
    cgroup: bool,
    /// Empty for the process's own group.
    directory: Path,
    pressure: bool,
}

/// Settings of which one is written, then its number, and the other left for settings that come later.
struct Versions([UnsafeCell<Settings>; 2]);
// SAFETY: each is written by `init` alone, before its number is known, and only read afterwards.
unsafe impl Sync for Versions {}

static SETTINGS: Versions =
    Versions([const { UnsafeCell::new(Settings { cgroup: false, directory: Path::EMPTY, pressure: false }) }; 2]);

/// Number of the settings in force.
static VERSION: AtomicUsize = AtomicUsize::new(0);
/// How often there were any.
static MADE: AtomicUsize = AtomicUsize::new(0);

/// Says what to watch; whether that is anything. Called at initialisation, and at most once more, by one thread at a time.
pub(super) fn init(cgroup: Cgroup, pressure: bool) -> bool {
    let directory = match cgroup {
        Cgroup::At(directory) => Path::join(&[directory]),
        _ => Some(Path::EMPTY),
    };
    let cgroup = cgroup != Cgroup::Off && directory.is_some();
    // Relaxed: calls come one after the other.
    let version = MADE.fetch_add(1, Ordering::Relaxed);
    if let Some(settings) = SETTINGS.0.get(version) {
        // SAFETY: nobody reads this one until its number is stored, and nobody else writes.
        unsafe { *settings.get() = Settings { cgroup, directory: directory.unwrap_or(Path::EMPTY), pressure } };
        // Release, paired with the acquire in `Watcher::new`.
        VERSION.store(version, Ordering::Release);
    }
    cgroup || pressure
}

/// Names of the files that matter, in the two versions of control groups.
struct Names {
    limits: [&'static [u8]; 2],
    usage: &'static [u8],
    /// Row of `memory.stat` that counts file pages which go first: reclaiming them costs nobody anything.
    easy: &'static [u8],
}

static V2: Names = Names { limits: [b"memory.max", b"memory.high"], usage: b"memory.current", easy: b"inactive_file " };
static V1: Names = Names {
    limits: [b"memory.limit_in_bytes", b"memory.soft_limit_in_bytes"],
    usage: b"memory.usage_in_bytes",
    easy: b"total_inactive_file ",
};

/// A control group whose limits can be read.
struct Group {
    directory: Path,
    names: &'static Names,
    /// The groups above are watched down to paths of this length.
    root: usize,
}

impl Group {
    /// The group in a directory, of whichever version has its files there.
    fn at(directory: Path, root: usize) -> Option<Group> {
        [&V2, &V1].into_iter().find_map(|names| {
            let group = Group { directory, names, root };
            number(&directory, names.usage).map(|_| group)
        })
    }

    /// The group of this process, found where control groups are mounted by convention.
    ///
    /// In a container `/proc/self/cgroup` may name a path of the host, and what is mounted is the group itself.
    fn own() -> Option<Group> {
        let mut buffer = [0; 4096];
        let lines = sys::read_file(c"/proc/self/cgroup", &mut buffer);
        lines.split(|&byte| byte == b'\n').find_map(|line| {
            let mut fields = line.splitn(3, |&byte| byte == b':');
            let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            let mount: &[u8] = match controllers {
                b"" => b"/sys/fs/cgroup",
                _ if controllers.split(|&byte| byte == b',').any(|name| name == b"memory") => b"/sys/fs/cgroup/memory",
                _ => return None,
            };
            let path = path.strip_suffix(b"/").unwrap_or(path);
            Group::nearest(Path::join(&[mount, path])?, mount.len())
        })
    }

    /// The group in a directory, or the nearest above it that has its files: a group for whose memory nobody accounts (version
    /// 2, where the one above has not handed the controller on) has none, and is bound by the limits above it.
    fn nearest(directory: Path, root: usize) -> Option<Group> {
        core::iter::successors(Some(directory), |here| here.parent(root)).find_map(|here| Group::at(here, root))
    }

    /// Whether this group or one above it is within a sixteenth of a limit.
    fn is_short(&self) -> bool {
        let mut directory = Some(self.directory);
        while let Some(here) = directory {
            let limits = self.names.limits.map(|name| number(&here, name).unwrap_or(usize::MAX));
            let limit = limits[0].min(limits[1]);
            // An unlimited group of version 1 has a limit beyond any machine's memory.
            if limit < 1 << 60
                && let Some(usage) = number(&here, self.names.usage)
                && usage > limit - limit / 16
                && usage.saturating_sub(self.easy(&here)) > limit - limit / 16
            {
                return true;
            }
            directory = here.parent(self.root);
        }
        false
    }

    fn easy(&self, directory: &Path) -> usize {
        let mut buffer = [0; 8192];
        let row = directory.with_file(b"memory.stat", |path| {
            let rows = sys::read_file(path, &mut buffer);
            rows.split(|&byte| byte == b'\n').find_map(|row| decimal(row.strip_prefix(self.names.easy)?))
        });
        row.flatten().unwrap_or(0)
    }
}

/// The number in a file; `None` if there is none, or no limit (`max`).
fn number(directory: &Path, name: &[u8]) -> Option<usize> {
    let mut buffer = [0; 32];
    directory.with_file(name, |path| decimal(sys::read_file(path, &mut buffer)))?
}

fn decimal(text: &[u8]) -> Option<usize> {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit());
    let (count, value) =
        digits.fold((0, 0usize), |(n, value), d| (n + 1, value.saturating_mul(10).saturating_add((d - b'0') as usize)));
    (count > 0).then_some(value)
}

/// A tenth of two seconds, the shortest window that the kernel grants to everybody.
const STALL: &[u8] = b"some 200000 2000000\0";

/// What the worker watches.
pub(super) struct Watcher {
    /// Number of the settings that it was made by.
    version: usize,
    group: Option<Group>,
    trigger: Option<Trigger>,
}

impl Watcher {
    /// Opens what the settings ask for, as far as it is there.
    pub(super) fn new() -> Watcher {
        // Acquire, paired with the release in `init`, which has returned once before the worker could start.
        let version = VERSION.load(Ordering::Acquire);
        // SAFETY: nobody writes settings whose number has been stored.
        let settings = unsafe { &*SETTINGS.0[version].get() };
        let group = match settings {
            Settings { cgroup: false, .. } => None,
            Settings { directory, .. } if directory.len > 0 => Group::at(*directory, directory.len),
            _ => Group::own(),
        };
        let trigger = settings.pressure.then(|| {
            let of_group = group.as_ref().and_then(|group| {
                group.directory.with_file(b"memory.pressure", |path| Trigger::new(path, STALL)).flatten()
            });
            of_group.or_else(|| Trigger::new(c"/proc/pressure/memory", STALL))
        });
        Watcher { version, group, trigger: trigger.flatten() }
    }

    /// Whether the settings are still those that it was made by.
    pub(super) fn is_current(&self) -> bool {
        // Relaxed: it is made anew by an acquire.
        self.version == VERSION.load(Ordering::Relaxed)
    }

    pub(super) fn is_watching(&self) -> bool {
        self.group.is_some() || self.trigger.is_some()
    }

    /// Whether the group's memory is short.
    pub(super) fn group_is_short(&self) -> bool {
        self.group.as_ref().is_some_and(Group::is_short)
    }

    /// Waits for so long, or until tasks stall for want of memory: whether they do.
    pub(super) fn wait(&mut self, time: Duration) -> bool {
        match &self.trigger {
            None => std::thread::sleep(time),
            Some(trigger) => match trigger.wait(time) {
                Some(stalled) => return stalled,
                // The group is gone, and with it the file.
                None => self.trigger = None,
            },
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_and_no_limit_is_none() {
        assert_eq!(decimal(b"1048576\n"), Some(1 << 20));
        assert_eq!(decimal(b"max\n"), None);
        assert_eq!(decimal(b""), None);
        assert_eq!(decimal(b"99999999999999999999999"), Some(usize::MAX));
    }

    #[test]
    fn paths_go_up_to_the_root_and_no_further() {
        let path = Path::join(&[b"/sys/fs/cgroup", b"/a/b"]).unwrap();
        let up = path.parent(14).unwrap();
        assert_eq!(up.bytes(), b"/sys/fs/cgroup/a");
        let root = up.parent(14).unwrap();
        assert_eq!(root.bytes(), b"/sys/fs/cgroup");
        assert!(root.parent(14).is_none());
        assert_eq!(up.with_file(b"x", |file| file.to_bytes().to_vec()).unwrap(), b"/sys/fs/cgroup/a/x");
        assert!(Path::join(&[&[b'a'; PATH_MAX]]).is_none());
    }

    /// A group without files of its own is bound by the one above, and nothing above the root is looked at.
    ///
    /// Red if `nearest` looks at the directory and the root alone.
    #[test]
    #[cfg(not(any(pcpalloc_twin, miri)))]
    fn a_group_that_is_not_accounted_for_has_the_limits_above_it() {
        let root = std::env::temp_dir().join(format!("pcpalloc-groups-{}", std::process::id()));
        let above = root.join("above");
        std::fs::create_dir_all(above.join("own")).unwrap();
        std::fs::write(above.join("memory.current"), "950\n").unwrap();
        std::fs::write(above.join("memory.max"), "1000\n").unwrap();
        let (root, above) = (root.to_str().unwrap(), above.to_str().unwrap());
        let own = Path::join(&[above.as_bytes(), b"/own"]).unwrap();
        let found = Group::nearest(own, root.len());
        let beyond = Group::nearest(own, own.len);
        std::fs::remove_dir_all(root).unwrap();
        assert!(found.is_some_and(|group| group.directory.bytes() == above.as_bytes()));
        assert!(beyond.is_none());
    }
}
