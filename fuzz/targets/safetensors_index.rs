//! Any bytes as the index of safetensors files: read without a panic, and never a name that leads elsewhere.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tensorswap::fuzz_safetensors_index(bytes));
