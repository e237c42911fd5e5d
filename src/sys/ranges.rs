//! Several ranges of memory, for one system call.

/// At most `N` ranges, laid out as the system reads them (`struct iovec`).
pub(crate) struct Ranges<const N: usize> {
    ranges: [Range; N],
    len: usize,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Range {
    pub(super) start: usize,
    pub(super) len: usize,
}

impl<const N: usize> Ranges<N> {
    pub(crate) const fn new() -> Self {
        Ranges { ranges: [Range { start: 0, len: 0 }; N], len: 0 }
    }

    /// How many more ranges there is room for.
    pub(crate) fn room(&self) -> usize {
        N - self.len
    }

    /// Adds a range; one that begins where the last one ends takes no room. There is room.
    pub(crate) fn add(&mut self, start: usize, len: usize) {
        if let Some(last) = self.as_slice().last()
            && last.start + last.len == start
        {
            self.ranges[self.len - 1].len += len;
        } else {
            self.ranges[self.len] = Range { start, len };
            self.len += 1;
        }
    }

    /// Bytes in all of them.
    pub(crate) fn bytes(&self) -> usize {
        self.as_slice().iter().map(|range| range.len).sum()
    }

    pub(super) fn as_slice(&self) -> &[Range] {
        &self.ranges[..self.len]
    }
}
