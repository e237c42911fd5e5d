//! What is said of a setting that cannot be.

use core::fmt;

/// A setting that cannot be: `Display` says which and why. What was in force stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigError(&'static str);

impl ConfigError {
    pub(crate) const fn new(what: &'static str) -> ConfigError {
        ConfigError(what)
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl core::error::Error for ConfigError {}
