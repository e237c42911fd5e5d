//! Which protections the heap has beyond its layout. Chosen once, before the first block is handed out.

use core::fmt;
use core::ops::BitOr;
use core::sync::atomic::{AtomicU8, Ordering};

/// Protections for [`Config::hardened`](crate::Config::hardened), in any combination.
///
/// `RANDOM` and `GUARD` act where slabs are made and leave every allocation as fast as it is. The others look at every
/// block, so with one of them no operation takes the fast path: `cargo bench --bench hardening` measures what each
/// costs. What each finds, and what none does, is in the guide and in `docs/hardening.md`.
///
/// ```
/// use pcpalloc::{Config, Hardening, PcpAlloc};
///
/// #[global_allocator]
/// static GLOBAL: PcpAlloc = PcpAlloc::with_config(Config::new().hardened(Hardening::CHECKED.with(Hardening::ZERO)));
///
/// assert_eq!(*Box::new(7), 7);
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Hardening(u8);

impl Hardening {
    /// None: what the layout gives for nothing.
    pub const NONE: Hardening = Hardening(0);
    /// Blocks of a slab are handed out in random order.
    pub const RANDOM: Hardening = Hardening(1);
    /// A page that cannot be touched behind every slab.
    pub const GUARD: Hardening = Hardening(2);
    /// What is freed is overwritten with zeros; that they are still there is looked at before the block is used again.
    /// Comes with `CHECKED`.
    pub const ZERO: Hardening = Hardening(4);
    /// As `ZERO`, with bytes of 0xdf, which as a pointer lead nowhere and as a length are absurd. Excludes `ZERO`.
    pub const POISON: Hardening = Hardening(8);
    /// A freed block is not used again before a megabyte, or 4096 blocks, have been freed after it on its CPU. Comes
    /// with `CHECKED`.
    pub const QUARANTINE: Hardening = Hardening(16);
    /// Every free is looked at before anything is done: a block freed twice, a pointer into a block, a pointer to
    /// something else and a layout of another size class end the process at once.
    pub const CHECKED: Hardening = Hardening(32);
    /// `RANDOM`, `GUARD`, `ZERO`, `QUARANTINE` and `CHECKED`.
    pub const ALL: Hardening = Hardening(1 | 2 | 4 | 16 | 32);

    const NAMES: [(&'static str, Hardening); 6] = [
        ("random", Hardening::RANDOM),
        ("guard", Hardening::GUARD),
        ("zero", Hardening::ZERO),
        ("poison", Hardening::POISON),
        ("quarantine", Hardening::QUARANTINE),
        ("checked", Hardening::CHECKED),
    ];

    /// These and the others.
    pub const fn with(self, other: Hardening) -> Hardening {
        Hardening(self.0 | other.0)
    }

    /// Whether all of the others are among these.
    pub const fn contains(self, other: Hardening) -> bool {
        self.0 & other.0 == other.0
    }

    const fn meets(self, other: Hardening) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether a block cannot be both.
    pub(crate) const fn is_contradictory(self) -> bool {
        self.contains(Hardening::ZERO.with(Hardening::POISON))
    }

    /// With what the chosen ones need.
    const fn completed(self) -> Hardening {
        let needing = Hardening::ZERO.with(Hardening::POISON).with(Hardening::QUARANTINE);
        if self.meets(needing) { self.with(Hardening::CHECKED) } else { self }
    }

    /// `1`, `0`, or names joined by `+`.
    pub(crate) fn parse(text: &[u8]) -> Option<Hardening> {
        match text {
            b"1" | b"on" => return Some(Hardening::ALL),
            b"0" | b"off" => return Some(Hardening::NONE),
            _ => {}
        }
        text.split(|&byte| byte == b'+').try_fold(Hardening::NONE, |all, name| {
            let (_, one) = Hardening::NAMES.iter().find(|(known, _)| known.as_bytes() == name)?;
            Some(all.with(*one))
        })
    }
}

impl BitOr for Hardening {
    type Output = Hardening;

    fn bitor(self, other: Hardening) -> Hardening {
        self.with(other)
    }
}

impl fmt::Debug for Hardening {
    /// The names, as `PCPALLOC_CONF` takes them; `0` for none.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("0");
        }
        let names = Hardening::NAMES.iter().filter(|(_, one)| self.contains(*one));
        names.enumerate().try_for_each(|(n, (name, _))| {
            f.write_str(if n == 0 { "" } else { "+" })?;
            f.write_str(name)
        })
    }
}

/// What is in force. Relaxed throughout: set before the heap is announced to be up, and never changed.
static ACTIVE: AtomicU8 = AtomicU8::new(0);

/// Puts protections in force. Called once, before anything is allocated.
pub(crate) fn init(chosen: Hardening) {
    ACTIVE.store(chosen.completed().0, Ordering::Relaxed);
}

/// What is in force.
pub(crate) fn active() -> Hardening {
    Hardening(ACTIVE.load(Ordering::Relaxed))
}

/// Whether one of these is in force.
#[inline]
pub(crate) fn any(of: Hardening) -> bool {
    active().meets(of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for bits in 1..64 {
            let some = Hardening(bits);
            assert_eq!(Hardening::parse(format!("{some:?}").as_bytes()), Some(some));
        }
        assert_eq!(Hardening::parse(b"1"), Some(Hardening::ALL));
        assert_eq!(Hardening::parse(b"0"), Some(Hardening::NONE));
        for wrong in [&b""[..], b"2", b"zero+", b"zero,random", b"Zero", b"random+fast"] {
            assert_eq!(Hardening::parse(wrong), None, "{wrong:?}");
        }
        assert!(Hardening::parse(b"zero+poison").unwrap().is_contradictory());
        assert!(!Hardening::ALL.is_contradictory());
    }

    #[test]
    fn what_looks_at_blocks_looks_at_frees() {
        assert!(Hardening::QUARANTINE.completed().contains(Hardening::CHECKED));
        assert!(Hardening::POISON.completed().contains(Hardening::CHECKED));
        assert!(!Hardening::RANDOM.with(Hardening::GUARD).completed().contains(Hardening::CHECKED));
    }
}
