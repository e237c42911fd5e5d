//! What is agreed about the repository itself, held by reading it: nothing here runs the heap.
//!
//! | module | what it holds |
//! | --- | --- |
//! | `layers` | imports go downwards, as the table in `src/README.md` has the layers; no `libc` or `nix` outside `sys` |
//! | `code` | no file beyond 600 lines, no marks of unfinished work, no lint of proofs turned off, pseudo-code for sections |
//! | `prose` | commands, paths, links, names, settings and versions in the documents exist |
//! | `public_api` | the public surface is what `public-api.txt` says |
//!
//! Each module has a control: a test that feeds its check something wrong and sees it refused.
#![cfg(not(miri))]

mod code;
mod layers;
mod prose;
mod public_api;
mod tree;

/// Fails with all that is wrong, a line each.
#[track_caller]
fn assert_none(wrong: Vec<String>) {
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}
