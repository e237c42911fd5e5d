//! What a program can see of its heap and do to it.

mod drain;
mod stats;

pub use drain::{Drain, DrainReport, TrimReport};
pub use stats::Stats;

pub(crate) use drain::{drain, trim};
pub(crate) use stats::stats;
