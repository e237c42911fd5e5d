//! What a program can see of its heap and do to it.

mod at_exit;
mod config;
mod deferred;
mod drain;
mod error;
mod leaks;
mod pressure;
mod report;
mod stats;
mod watch;
mod watermarks;
mod worker;

pub use config::Config;
pub use drain::{Drain, DrainReport, TrimReport};
pub use error::ConfigError;
pub use leaks::{LeakedBlocks, Leaks};
pub use report::{BuddyInfo, SlabInfo, VmStat, ZoneInfo};
pub use stats::Stats;
pub use watermarks::Watermarks;

pub(crate) use at_exit::arm_exit_report;
pub(crate) use config::{limit, set_limit};
pub(crate) use deferred::{Deferred, set_settle};
pub(crate) use drain::{drain, trim};
pub(crate) use stats::{Size, stats};
pub(crate) use watermarks::{set_watermarks, watermarks};
pub(crate) use worker::{after_fork, start_if_due as start_worker_if_due};
