//! Guides: how to use the heap, how to tune it, and how it works inside.
//!
//! | chapter | for |
//! | --- | --- |
//! | [`getting_started`] | the four lines, and what to look at first |
//! | [`tuning`] | limits, watermarks, huge pages, containers |
//! | [`nolock`] | signal handlers, profilers, code under locks: what may be called where |
//! | [`rcu`] | readers that pay nothing, from a cell to a list of one's own |
//! | [`metrics`] | what the heap says of itself: statistics, Prometheus, tags, leaks, latencies |
//! | [`profiling`] | who holds the memory: the sampling profiler, pprof, DHAT's viewer, the `dhat` crate |
//! | [`hardening`] | protections, what each finds and costs, guarded sampling |
//! | [`moving_from_jemalloc`], [`moving_from_mimalloc`] | option by option |
//! | [`internals`] | one allocation and one deferred free, step by step through the files |
//!
//! They are text with programs in it, which are compiled and run with the documentation's tests; there is nothing in
//! these modules to import, and none of them is in a program.

#[doc = include_str!("getting_started.md")]
pub mod getting_started {}

#[doc = include_str!("tuning.md")]
pub mod tuning {}

#[doc = include_str!("nolock.md")]
pub mod nolock {}

#[doc = include_str!("rcu.md")]
pub mod rcu {}

#[doc = include_str!("metrics.md")]
pub mod metrics {}

#[doc = include_str!("profiling.md")]
pub mod profiling {}

#[doc = include_str!("hardening.md")]
pub mod hardening {}

#[doc = include_str!("moving_from_jemalloc.md")]
pub mod moving_from_jemalloc {}

#[doc = include_str!("moving_from_mimalloc.md")]
pub mod moving_from_mimalloc {}

#[doc = include_str!("../README.md")]
pub mod internals {}
