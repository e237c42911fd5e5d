//! Marks over free resident memory: what they may say, and what is in force.

use core::sync::atomic::Ordering;

use super::error::ConfigError;
use crate::zone::MARKS;

/// Marks over the heap's *free resident* memory: what the process holds and nobody uses. In bytes. By default none is set.
///
/// Memory in per-CPU stacks is not part of it ([`Stats::percpu_cached`](crate::Stats::percpu_cached)).
///
/// `min <= low <= high`, where `low: 0` populates nothing and `high: 0` follows the heap's size; with a `low`, `high` is
/// needed.
///
/// ```
/// use pcpalloc::Watermarks;
///
/// const LEAN: Watermarks = Watermarks { min: 0, low: 0, high: 4 << 20 };
/// const READY: Watermarks = Watermarks { min: 1 << 20, low: 16 << 20, high: 32 << 20 };
/// # pcpalloc::PcpAlloc::new().set_watermarks(READY)?;
/// # pcpalloc::PcpAlloc::new().set_watermarks(LEAN)?;
/// # Ok::<(), pcpalloc::ConfigError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watermarks {
    /// A reserve: while there is less, allocation takes untouched memory before it takes from this.
    #[doc(alias = "WMARK_MIN")]
    pub min: usize,
    /// While there is less, the worker gives memory to free pages until there is `high`, so that a program which
    /// sets this pays no page faults. 0 for never.
    #[doc(alias = "WMARK_LOW")]
    pub low: usize,
    /// More than this is given back to the system within a fraction of a second, whether it is in use now and
    /// then or not. 0 follows the heap's size: an eighth of what is resident, but at least 32 MiB; of freed blocks
    /// beyond 4 MiB, as much again, and at least 64 MiB; and more where what went back for it is taken again within about a
    /// second, until it is not used any more. A quarter of it at most, and 16 MiB, may be slabs that wait for
    /// the sizes that were freed to be asked for again. Where `low` is 0, what has not been used for a second is given
    /// back in any case, down to `min`. Where it is set, what exceeds `high` is, to within 4 MiB.
    #[doc(alias = "WMARK_HIGH")]
    pub high: usize,
}

impl Watermarks {
    pub(super) const fn check(&self) -> Result<(), ConfigError> {
        match self.contradiction() {
            Some((problem, _)) => Err(ConfigError::new(problem)),
            None => Ok(()),
        }
    }

    /// With the marks that were given. A low mark by itself, where there is no high one, is both.
    pub(super) fn overridden(self, given: &[Option<(&[u8], usize)>; 3]) -> Watermarks {
        let mark = |mark: usize, before| given[mark].map_or(before, |(_, bytes)| bytes);
        let low = mark(LOW, self.low);
        let high = if given[LOW].is_some() && self.high == 0 { low } else { self.high };
        Watermarks { min: mark(MIN, self.min), low, high: mark(HIGH, high) }
    }

    /// What two of the marks say that cannot be, and which two, by their places in `MARK_NAMES`.
    pub(super) const fn contradiction(&self) -> Option<(&'static str, [usize; 2])> {
        if self.min > self.low && self.low != 0 {
            return Some(("watermarks: min is above low", [MIN, LOW]));
        }
        if self.high != 0 && self.low > self.high {
            return Some(("watermarks: low is above high", [LOW, HIGH]));
        }
        if self.high != 0 && self.min > self.high {
            return Some(("watermarks: min is above high", [MIN, HIGH]));
        }
        if self.low != 0 && self.high == 0 {
            let problem = "watermarks: low is set, so high must be: that is how far memory is populated";
            return Some((problem, [LOW, HIGH]));
        }
        None
    }
}

/// The marks as settings.
pub(super) const MARK_NAMES: [&[u8]; 3] = [b"min", b"low", b"high"];
const MIN: usize = 0;
const LOW: usize = 1;
const HIGH: usize = 2;

pub(super) fn store(marks: Watermarks) {
    MARKS.min.store(marks.min, Ordering::Relaxed);
    MARKS.low.store(marks.low, Ordering::Relaxed);
    MARKS.high.store(marks.high, Ordering::Relaxed);
}

pub(crate) fn watermarks() -> Watermarks {
    Watermarks {
        min: MARKS.min.load(Ordering::Relaxed),
        low: MARKS.low.load(Ordering::Relaxed),
        high: MARKS.high_now(),
    }
}

pub(crate) fn set_watermarks(marks: Watermarks) -> Result<(), ConfigError> {
    marks.check()?;
    store(marks);
    super::worker::call();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contradictions_are_named() {
        let check = |min, low, high| Watermarks { min, low, high }.check();
        assert!(check(0, 0, 0).is_ok() && check(1, 2, 3).is_ok() && check(0, 0, 5).is_ok() && check(3, 0, 5).is_ok());
        let problem = |min, low, high| check(min, low, high).unwrap_err().to_string();
        assert_eq!(problem(0, 4, 3), "watermarks: low is above high");
        assert_eq!(problem(4, 0, 3), "watermarks: min is above high");
        assert_eq!(problem(2, 1, 3), "watermarks: min is above low");
        assert!(problem(0, 1, 0).starts_with("watermarks: low is set, so high must be"));
    }
}
