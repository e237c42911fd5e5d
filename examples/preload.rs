//! The heap for programs that were never built with it.
//!
//! ```text
//! cargo build --release --features capi --example preload
//! LD_PRELOAD=$PWD/target/release/examples/libpreload.so python3
//! ```
//!
//! Settings come from the environment: `PCPALLOC_CONF="limit:2g,high:64m"`. The library is all there is to it: the
//! feature exports `malloc` and its family, which the dynamic linker then finds before the C library's.

use pcpalloc as _;
