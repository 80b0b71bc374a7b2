//! Any bytes as the manifest of a snapshot: read without a panic, and never as what none can say.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tensorswap::fuzz_snapshot_manifest(bytes));
