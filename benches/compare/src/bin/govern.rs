//! The service of `examples/govern` under the allocator that was chosen; `examples/govern` runs it and draws.

#[path = "../allocator.rs"]
#[allow(dead_code, reason = "the picture needs no name")]
mod allocator;
#[path = "../../../../examples/govern/service.rs"]
#[allow(dead_code, reason = "what other allocators cannot be told")]
mod service;

fn main() {
    service::run(|_| false);
}
