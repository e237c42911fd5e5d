//! Read-copy update: readers that pay nothing, and frees that wait for them, in bulk.
//!
//! # Overview
//!
//! Readers go through shared data inside *sections* ([`read_lock`]) and see, for as long as a section lasts,
//! everything that was reachable when it began. A writer unlinks an object first and then defers its free
//! ([`free`]) or waits ([`synchronize`]) until every section that was under way has ended: a *grace period*.
//! The design is that of the Linux kernel's RCU and of its `kvfree_rcu`.
//!
//! # A growing example
//!
//! [`guide::rcu`](crate::guide::rcu) has a longer one, and says when not to use this.
//!
//! Without any `unsafe`, for one value: [`RcuCell`]. With a type's own destructor, for whatever one has
//! unlinked: [`retire`]. By hand:
//!
//! ```
//! use pcpalloc::{PcpAlloc, rcu};
//! use std::alloc::Layout;
//! use std::ptr::NonNull;
//! use std::sync::atomic::{AtomicPtr, Ordering};
//!
//! #[global_allocator]
//! static GLOBAL: PcpAlloc = PcpAlloc::new();
//!
//! static CURRENT: AtomicPtr<[u32; 4]> = AtomicPtr::new(std::ptr::null_mut());
//!
//! fn publish(values: [u32; 4]) {
//!     let new = Box::into_raw(Box::new(values));
//!     let old = CURRENT.swap(new, Ordering::AcqRel);
//!     if let Some(old) = NonNull::new(old) {
//!         // SAFETY: from a box, unlinked, and plain memory without a destructor.
//!         unsafe { rcu::free(old.cast(), Layout::new::<[u32; 4]>()) };
//!     }
//! }
//!
//! publish([1, 2, 3, 4]);
//! let section = rcu::read_lock();
//! // SAFETY: published by `publish`, and not freed while the section lasts.
//! let seen = unsafe { &*CURRENT.load(Ordering::Acquire) };
//! publish([5, 6, 7, 8]);
//! assert_eq!(seen.iter().sum::<u32>(), 10);
//! drop(section);
//!
//! let report = rcu::drain();
//! assert_eq!(rcu::stats().pending_pointers, 0);
//! # let _ = report;
//! ```
//!
//! # How much memory may wait
//!
//! Above [`Backlog::low`] bytes grace periods are expedited; at [`Backlog::high`] a caller of [`free`] or
//! [`retire`] who may wait, waits and helps. A page holds up to 507 pointers, of blocks of 4 KiB at most, which
//! makes P = 507 * 4096 bytes, and waits as a whole. With T threads that defer at the same time, L the largest
//! block among those that a page does not take, and M the larger of P and L,
//!
//! ```text
//! high + CPUs * P + T * M
//! ```
//!
//! bytes at most wait in full pages, since each thread finds out after it has added one page or block, and part-filled
//! pages are sealed once while a batch waits, whatever waits already. Pages that fill anew meanwhile hold
//! `(CPUs + 1) * P` at most, so
//!
//! ```text
//! pending_bytes  <=  high + (2 * CPUs + 1) * P + T * M
//! ```
//!
//! and no more is ever held back, but a page of 4 KiB for every 507 pointers. (In a [`Domain`] of one's own, which
//! fills one page at a time, put 1 for CPUs.) Not bound by it are frees from inside a section, which cannot wait
//! for its end, from deferred calls, and from nolock contexts, which cannot wait.
//!
//! # Limits
//!
//! - [`synchronize`] and whatever waits inside a section of its own domain panics: it would wait for ever.
//! - A guard that is leaked is a section without an end, and no grace period ends any more ([`ReadGuard`]).
//! - Sections must not be held across an `await` that may resume elsewhere: guards are not `Send`.
//! - In the child of a `fork` only the sections of the thread that forked are left; what the parent was about
//!   to free in that moment is not freed in the child.
//! - What waits when the process ends is not freed; leak checkers want [`drain`] first.
//! - Not for data that changes as often as it is read, and not where memory must be free at once.

mod by_thread;
mod cell;
mod cookie;
mod core;
mod default;
mod defer;
mod domain;
mod entry;
mod epoch;
mod fork;
mod gather;
mod grace;
mod head;
mod linked;
mod page;
mod pool;
mod reader;
mod reclaimer;
mod source;
mod stats;
mod work;

pub use cell::RcuCell;
pub use cookie::Cookie;
#[cfg(feature = "profile")]
pub(crate) use default::observe_waiting;
pub use default::{
    barrier, call, drain, free, free_nolock, poll_once, retire, set_reclaimer, set_stall_timeout, set_watermarks,
    start_poll, stats, synchronize, synchronize_expedited, watermarks,
};
pub use domain::{Domain, DomainGuard};
pub use head::RcuHead;
pub use reader::{ReadGuard, read_lock};
pub use source::{BlockSource, Heap};
pub use stats::{Backlog, RcuReport, RcuStats};
