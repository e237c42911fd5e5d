//! What the crate's own tests see of its inside; no part of what is promised to stay.

#[cfg(all(target_arch = "x86_64", not(any(pcpalloc_twin, miri))))]
pub use crate::percpu::trial;
