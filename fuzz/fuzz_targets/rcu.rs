#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| pcpalloc_fuzz::rcu(input));
