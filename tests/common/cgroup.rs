//! Control groups of a test's own, where it may make them.

use std::fs;
use std::path::{Path, PathBuf};

/// A control group with a limit on memory, for as long as this value lives.
pub struct LimitedGroup(pub PathBuf);

impl LimitedGroup {
    /// `None` without the right to make one (version 1 or 2).
    pub fn new(limit: usize) -> Option<LimitedGroup> {
        let versions = [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")];
        versions.into_iter().find_map(|(mount, name)| {
            use std::sync::atomic::{AtomicUsize, Ordering};
            static MADE: AtomicUsize = AtomicUsize::new(0);
            let number = MADE.fetch_add(1, Ordering::Relaxed);
            let path = Path::new(mount).join(format!("pcpalloc-{}-{number}", std::process::id()));
            fs::create_dir(&path).ok()?;
            let group = LimitedGroup(path);
            // Without the memory controller there is no such file, and none can be made.
            fs::write(group.0.join(name), limit.to_string()).ok()?;
            // Nothing is to be had from swap where there is some.
            for swap in ["memory.swappiness", "memory.swap.max"] {
                let _ = fs::write(group.0.join(swap), "0");
            }
            Some(group)
        })
    }

    /// Has tasks that find no memory wait instead of one being killed; false where that cannot be had (version 2).
    pub fn wait_for_memory(&self) -> bool {
        fs::write(self.0.join("memory.oom_control"), "1").is_ok()
    }

    pub fn path(&self) -> &str {
        self.0.to_str().expect("a path of plain letters")
    }
}

impl Drop for LimitedGroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// Moves this process into a group.
pub fn join(group: &Path) {
    fs::write(group.join("cgroup.procs"), "0").expect("a process may move");
}
