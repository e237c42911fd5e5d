//! What a program can see of its heap and do to it.

mod config;
mod drain;
mod pressure;
mod report;
mod stats;
mod watch;
mod worker;

pub use config::{Config, ConfigError, Watermarks};
pub use drain::{Drain, DrainReport, TrimReport};
pub use report::{BuddyInfo, SlabInfo, VmStat, ZoneInfo};
pub use stats::Stats;

pub(crate) use config::{limit, set_limit, set_watermarks, watermarks};
pub(crate) use drain::{drain, trim};
pub(crate) use stats::stats;
pub(crate) use worker::{after_fork, start_if_due as start_worker_if_due};
