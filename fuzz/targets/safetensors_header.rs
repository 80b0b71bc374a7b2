//! Any bytes as a safetensors file: read without a panic, and never tensors that are not in it.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tensorswap::fuzz_safetensors_header(bytes));
