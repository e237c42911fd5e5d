//! What a program can see of its heap and do to it.

mod config;
mod drain;
mod stats;

pub use config::ConfigError;
pub use drain::{Drain, DrainReport, TrimReport};
pub use stats::Stats;

pub(crate) use drain::{drain, trim};
pub(crate) use stats::stats;
