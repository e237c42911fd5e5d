//! A profile as it was at a moment.

use std::collections::HashMap;
use std::io::{self, Write};

use super::record::{Copy, ONE};
use super::symbols::Symbols;
use super::{dhat, proto};

/// What has been sampled, and what it stands for. See [`snapshot`](super::snapshot).
pub struct Profile {
    pub(super) copy: Copy,
    interval: usize,
}

/// Which blocks are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum View {
    /// In use by the program.
    Live,
    /// Freed, but waiting for a grace period.
    Deferred,
    /// In use or waiting at the moment when these were most bytes.
    Peak,
    /// Allocated since the start.
    Allocated,
}

/// An estimate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Total {
    /// Blocks.
    pub objects: u64,
    /// Bytes of these blocks.
    pub bytes: u64,
}

/// The blocks of one size from one stack.
#[derive(Clone, Copy)]
pub struct Site<'p> {
    profile: &'p Profile,
    number: usize,
}

impl Site<'_> {
    /// Return addresses from the innermost frame outwards, the profiler's own first.
    pub fn frames(&self) -> &[usize] {
        self.profile.frames_of(self.site().stack as usize)
    }

    /// Bytes in a block.
    pub fn size(&self) -> usize {
        self.site().size
    }

    /// Blocks that were sampled.
    pub fn samples(&self) -> u64 {
        self.site().samples
    }

    /// What they stand for.
    pub fn total(&self, view: View) -> Total {
        let weight = self.weight(view);
        Total { objects: weight / ONE, bytes: (weight as u128 * self.size() as u128 / ONE as u128) as u64 }
    }

    pub(super) fn weight(&self, view: View) -> u64 {
        let site = self.site();
        match view {
            View::Live => site.held - site.deferred.min(site.held),
            View::Deferred => site.deferred.min(site.held),
            View::Peak => site.at_peak(),
            View::Allocated => site.allocated,
        }
    }

    pub(super) fn stack(&self) -> usize {
        self.site().stack as usize
    }

    pub(super) fn lifetimes(&self) -> u128 {
        self.site().lifetimes(self.profile.copy.now)
    }

    fn site(&self) -> &super::record::Site {
        &self.profile.copy.sites[self.number]
    }
}

impl Profile {
    pub(super) fn new(copy: Copy, interval: usize) -> Profile {
        Profile { copy, interval }
    }

    pub(super) fn frames_of(&self, stack: usize) -> &[usize] {
        let stack = &self.copy.stacks[stack];
        &self.copy.frames[stack.first_frame as usize..][..stack.depth as usize]
    }

    /// Everything, by stack and size.
    pub fn sites(&self) -> impl Iterator<Item = Site<'_>> {
        (1..self.copy.sites.len()).map(|number| Site { profile: self, number })
    }

    /// The whole of a view.
    pub fn total(&self, view: View) -> Total {
        let (mut objects, mut bytes) = (0, 0);
        for site in self.sites() {
            let weight = site.weight(view) as u128;
            objects += weight;
            bytes += weight * site.size() as u128;
        }
        Total { objects: (objects / ONE as u128) as u64, bytes: (bytes / ONE as u128) as u64 }
    }

    /// Bytes from one sample to the next on average, as last set; 0 if there has never been a profile.
    pub fn interval(&self) -> usize {
        self.interval
    }

    /// Samples for which there was no room, and which no view contains.
    pub fn lost(&self) -> u64 {
        self.copy.lost
    }

    /// Writes a gzipped `profile.proto`, for `pprof` and whatever else reads it: objects and bytes of all four views, a
    /// name and a line for every address, and the program's mappings with their build ids.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write_pprof(&self, out: impl Write) -> io::Result<()> {
        proto::write(self, out)
    }

    /// Writes DHAT's JSON, version 2, for valgrind's `dh_view.html`. What waits for a grace period counts as in use.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write_dhat(&self, out: impl Write) -> io::Result<()> {
        dhat::write(self, out)
    }

    /// Writes a line for every stack of a view, outermost function first, with its bytes: what makes flame graphs.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write_folded(&self, view: View, mut out: impl Write) -> io::Result<()> {
        let mut symbols = Symbols::new();
        let mut bytes_of: HashMap<usize, u128> = HashMap::new();
        for site in self.sites() {
            *bytes_of.entry(site.stack()).or_default() += site.weight(view) as u128 * site.size() as u128;
        }
        let mut lines: Vec<String> = Vec::new();
        for (stack, bytes) in bytes_of {
            let bytes = bytes / ONE as u128;
            if bytes > 0 {
                let frames = symbols.stack(self.frames_of(stack));
                let names: Vec<_> = frames.iter().rev().map(|frame| frame.name.replace(';', ":")).collect();
                lines.push(format!("{} {bytes}", names.join(";")));
            }
        }
        lines.sort_unstable();
        lines.iter().try_for_each(|line| writeln!(out, "{line}"))
    }
}

impl core::fmt::Debug for Profile {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Profile")
            .field("interval", &self.interval)
            .field("sites", &self.copy.sites.len().saturating_sub(1))
            .field("live", &self.total(View::Live))
            .field("lost", &self.lost())
            .finish()
    }
}
