//! What several test programs need.
#![allow(dead_code, unreachable_pub, unsafe_code, clippy::unwrap_used)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    clippy::print_stderr
)]

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::time::Duration;

use tensorswap::base::config::Config;
use tensorswap::base::dtype::Dtype;
use tensorswap::io::tensor::KEEP_LENGTH;
use tensorswap::io::{Completion, Engine, Tensor, Ticket};

/// Nothing here takes this long; a test that would hang fails instead.
pub const PATIENCE: Option<Duration> = Some(Duration::from_secs(10));

/// How many times longer than by default the random tests run.
pub fn scale() -> u64 {
    std::env::var("TSW_TEST_SCALE")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(1)
}

/// Lets `work` change a world at random; where that fails, says what it did last, by its log, which
/// begins with its settings.
pub fn trial<W>(
    what: &str,
    world: &mut W,
    log: impl Fn(&W) -> &[String],
    work: impl FnOnce(&mut W),
) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(world))) {
        let log = log(world);
        eprintln!("{what} failed after {} calls", log.len());
        let tail = log.len().saturating_sub(80).max(1);
        let told = log.iter().take(1).chain(log.iter().skip(tail));
        told.for_each(|line| eprintln!("    {line}"));
        resume_unwind(panic);
    }
}

/// Whether tests that write gigabytes may run.
pub fn is_long() -> bool {
    std::env::var_os("TSW_TEST_LONG").is_some_and(|value| value == "1")
}

pub fn config(settings: &[(&str, &str)]) -> Config {
    let mut config = Config::new();
    for (key, value) in settings {
        config.set(key, value).unwrap();
    }
    config
}

pub fn engine(settings: &[(&str, &str)]) -> Engine {
    Engine::new(&config(settings)).unwrap()
}

/// A directory on the disk that holds the build, which is a real one.
pub fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

pub fn path(directory: &Path, name: &str) -> CString {
    CString::new(directory.join(name).as_os_str().as_bytes()).unwrap()
}

/// SplitMix64 (Steele, Lea, Flood 2014).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number from 0 up to and without `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.next().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.fill(&mut bytes);
        bytes
    }
}

pub fn pattern(len: usize, seed: u64) -> Vec<u8> {
    Random(seed).bytes(len)
}

/// A tensor of bytes. The caller keeps the memory where it is until the request is over.
pub fn tensor(bytes: &mut [u8], offset: u64) -> Tensor {
    // SAFETY: each test keeps the memory, and touches it only after the request.
    unsafe { Tensor::new(bytes.as_mut_ptr(), bytes.len() as u64, Dtype::Bytes) }
        .unwrap()
        .at(offset)
        .unwrap()
}

pub fn keep(tensor: Tensor) -> Tensor {
    tensor.with_flags(KEEP_LENGTH).unwrap()
}

pub fn wait(engine: &Engine, ticket: Ticket) -> Completion {
    engine.wait(ticket, PATIENCE).unwrap()
}

/// Writes `bytes` and waits.
pub fn write(engine: &Engine, path: &CString, bytes: &[u8], offset: u64) -> Completion {
    let mut bytes = bytes.to_vec();
    let ticket = engine
        .swap_out(&[tensor(&mut bytes, offset)], &[path])
        .unwrap();
    wait(engine, ticket)
}

/// Reads `len` bytes and waits.
pub fn read(engine: &Engine, path: &CString, len: usize, offset: u64) -> (Vec<u8>, Completion) {
    let mut bytes = vec![0xAA; len];
    let ticket = engine
        .swap_in(&[tensor(&mut bytes, offset)], &[path])
        .unwrap();
    let completion = wait(engine, ticket);
    (bytes, completion)
}

/// Descriptors that this process has open.
pub fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Says why something is not tested here. A failure where `TSW_TEST_REQUIRE`, a list separated by
/// commas, names the feature or says `all`.
pub fn skip(feature: &str, reason: &str) {
    let required = std::env::var("TSW_TEST_REQUIRE").unwrap_or_default();
    let mut names = required.split(',').map(str::trim);
    assert!(
        !names.any(|name| name == feature || name == "all"),
        "{feature} is required: {reason}"
    );
    println!("skipped ({feature}): {reason}");
}

/// How long a test goes on that could go on for ever: `TSW_TEST_SECONDS`, or a moment.
pub fn duration() -> Duration {
    let told = std::env::var("TSW_TEST_SECONDS").ok();
    Duration::from_secs(told.and_then(|text| text.parse().ok()).unwrap_or(2))
}
