//! Any bytes as the log of a store: read without a panic, and never as what no log can say.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tensorswap::fuzz_store_log(bytes));
