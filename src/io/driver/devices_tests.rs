use std::ffi::{CStr, CString};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use super::*;
use crate::base::config::{Config, EngineOptions, Policy};
use crate::base::sync::Mutex;
use crate::io::backend::memory::MemoryBackend;
use crate::io::backend::{Backend, Reaped, Transfer, Wake};
use crate::io::driver::{BackendFacts, Driver};
use crate::io::request::{Length, Outcome, Segment, Sink};
use crate::io::storage::memory::MemoryStorage;
use crate::io::storage::{Access, Alignment, Errno, FileHandle, FileIdentity, OpenedFile, Storage};
use crate::memory::Buffer;

/// Nothing here takes this long; a test that would hang fails instead.
const PATIENCE: Duration = Duration::from_secs(20);
const DEPTH: usize = 32;
/// Not aligned, neither in memory: each is one operation, through a bounce block.
const LEN_BYTES: usize = 1000;

/// Files in memory, each on the device that the first byte of its path names.
#[derive(Debug, Default)]
struct Drives(MemoryStorage);

fn on(path: &CStr, identity: FileIdentity) -> FileIdentity {
    let device = path.to_bytes().first().map_or(0, |byte| u64::from(*byte));
    FileIdentity { device, ..identity }
}

impl Storage for Drives {
    fn identify(&self, path: &CStr) -> Option<(FileIdentity, u64)> {
        let (identity, len_bytes) = self.0.identify(path)?;
        Some((on(path, identity), len_bytes))
    }

    fn open(&self, path: &CStr, access: Access) -> Result<OpenedFile, Errno> {
        let opened = self.0.open(path, access)?;
        Ok(OpenedFile {
            identity: on(path, opened.identity),
            alignment: Alignment {
                offset_bytes: 512,
                memory_bytes: 512,
            },
            ..opened
        })
    }

    fn reserve(&self, file: &FileHandle, from: u64, end: u64) -> Result<(), Errno> {
        self.0.reserve(file, from, end)
    }

    fn set_len(&self, file: &FileHandle, len_bytes: u64) -> Result<(), Errno> {
        self.0.set_len(file, len_bytes)
    }

    fn len_bytes(&self, file: &FileHandle) -> Result<u64, Errno> {
        self.0.len_bytes(file)
    }

    fn clear_direct(&self, file: &FileHandle) -> Result<(), Errno> {
        self.0.clear_direct(file)
    }
}

/// Whether the first device hangs, and how many transfers hang there.
#[derive(Debug, Default)]
struct Hang {
    hangs: AtomicBool,
    held_count: AtomicUsize,
}

/// The memory backend, with a first device that hangs when told.
struct Hanging {
    inner: MemoryBackend,
    hang: Arc<Hang>,
    held: Vec<(u64, Transfer)>,
}

impl Backend for Hanging {
    fn submit(&mut self, key: u64, transfer: Transfer) {
        if transfer.device == 0 && self.hang.hangs.load(Ordering::SeqCst) {
            self.held.push((key, transfer));
            self.hang
                .held_count
                .store(self.held.len(), Ordering::SeqCst);
        } else {
            self.inner.submit(key, transfer);
        }
    }

    fn drive(&mut self, wait: bool, reaped: &mut Vec<Reaped>) -> Result<(), Errno> {
        if !self.hang.hangs.load(Ordering::SeqCst) {
            for (key, transfer) in self.held.drain(..) {
                self.inner.submit(key, transfer);
            }
        }
        self.inner.drive(wait, reaped)
    }

    fn waker(&self) -> Arc<dyn Wake> {
        self.inner.waker()
    }
}

/// Sends the tokens of requests that end well.
#[derive(Debug)]
struct Ends(Mutex<Sender<u64>>);

impl Sink for Ends {
    fn is_cancelled(&self, _token: u64) -> bool {
        false
    }

    fn progress(&self, _token: u64, _bytes: u64) {}

    fn complete(&self, token: u64, outcome: Outcome) {
        assert_eq!(outcome.failure, None);
        lock(&self.0).send(token).unwrap();
    }
}

struct Bench {
    driver: Driver,
    hang: Arc<Hang>,
    sink: Arc<Ends>,
    ends: Receiver<u64>,
    buffer: Buffer,
    next_token: u64,
}

impl Bench {
    /// A driver that has met the devices `a`, which is the first, and `b`.
    fn new() -> Bench {
        let mut config = Config::new();
        config.set("backend", "memory").unwrap();
        config.set("queue_depth", &DEPTH.to_string()).unwrap();
        let options = EngineOptions::from_config(&config).unwrap();
        let hang = Arc::new(Hang::default());
        let backend = Hanging {
            inner: MemoryBackend::default(),
            hang: Arc::clone(&hang),
            held: Vec::new(),
        };
        let facts = BackendFacts {
            name: "memory",
            reason: String::new(),
        };
        let make = move || Ok((Box::new(backend) as Box<dyn Backend>, facts));
        let storage = Arc::new(Drives::default());
        let counters = Arc::new(Counters::default());
        let started = Driver::start(&options, 256, storage, Box::new(make), counters, None);
        let (tell, ends) = channel();
        let mut bench = Bench {
            driver: started.unwrap().0,
            hang,
            sink: Arc::new(Ends(Mutex::new(tell))),
            ends,
            buffer: Buffer::allocate(1 << 20, Policy::Off, Policy::Off).unwrap(),
            next_token: 0,
        };
        for device in ["a", "b"] {
            let token = bench.submit(device, Direction::Out, Priority::Foreground, 1);
            assert_eq!(bench.wait(1), [token]);
        }
        bench
    }

    /// Submits a request of as many operations on a file of its own; returns its token.
    fn submit(
        &mut self,
        device: &str,
        direction: Direction,
        priority: Priority,
        operations: usize,
    ) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        let mut request = self.driver.blank_request();
        let blank = Arc::get_mut(&mut request).unwrap();
        blank.direction = direction;
        blank.priority = priority;
        blank.token = token;
        blank.sink = Some(Arc::clone(&self.sink) as Arc<dyn Sink>);
        let file = match direction {
            Direction::Out => format!("{device}{token}"),
            Direction::In => format!("{device}{}", if device == "a" { 0 } else { 1 }),
        };
        let path = CString::new(file).unwrap();
        blank.push_file(&path, Length::Grow, token);
        for index in 0..operations {
            let step = if direction == Direction::Out { 4096 } else { 0 };
            blank.push_segment(Segment {
                file_offset: (step * index).try_into().unwrap(),
                memory: self.buffer.range().slice(1, LEN_BYTES).unwrap(),
                padding_bytes: 0,
                buffer: None,
                index: 0,
                user_tag: 0,
            });
        }
        assert!(self.driver.submit(request).is_ok());
        token
    }

    /// The tokens of the next requests that end.
    fn wait(&self, count: usize) -> Vec<u64> {
        let next = |_| self.ends.recv_timeout(PATIENCE).expect("a request ends");
        (0..count).map(next).collect()
    }

    fn hang(&self) {
        self.hang.hangs.store(true, Ordering::SeqCst);
    }

    /// The first device works again; the driver notices with what it does next.
    fn recover(&mut self) -> u64 {
        self.hang.hangs.store(false, Ordering::SeqCst);
        self.submit("b", Direction::Out, Priority::Foreground, 1)
    }

    /// Waits until as many transfers hang, and sees that no more come.
    fn wait_for_held(&mut self, count: usize) {
        let held = || self.hang.held_count.load(Ordering::SeqCst);
        let end = Instant::now() + PATIENCE;
        while held() < count && Instant::now() < end {
            std::thread::yield_now();
        }
        for _ in 0..8 {
            let token = self.submit("b", Direction::Out, Priority::Foreground, 4);
            assert_eq!(self.wait(1), [token]);
        }
        assert_eq!(self.hang.held_count.load(Ordering::SeqCst), count);
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // Else a test that fails would hang: the driver ends after all that is in flight.
        self.hang.hangs.store(false, Ordering::SeqCst);
    }
}

#[test]
fn a_device_that_hangs_fills_its_own_depth_and_holds_up_no_other() {
    for direction in [Direction::Out, Direction::In] {
        let mut bench = Bench::new();
        bench.hang();
        let hung: Vec<u64> = (0..20)
            .map(|_| bench.submit("a", direction, Priority::Foreground, 10))
            .collect();
        bench.wait_for_held(DEPTH);
        let others: Vec<u64> = (0..50)
            .map(|index| {
                let direction = [Direction::Out, Direction::In][index % 2];
                bench.submit("b", direction, Priority::Foreground, 10)
            })
            .collect();
        let mut ended = bench.wait(others.len());
        ended.sort_unstable();
        assert_eq!(ended, others, "all of b, and nothing of a");
        bench.wait_for_held(DEPTH);

        let last = bench.recover();
        let mut ended = bench.wait(hung.len() + 1);
        ended.sort_unstable();
        assert_eq!(ended, [hung, vec![last]].concat());
    }
}

#[test]
fn background_has_a_share_beside_foreground_and_all_of_the_depth_elsewhere() {
    let mut bench = Bench::new();
    bench.hang();
    bench.submit("a", Direction::In, Priority::Foreground, 1);
    bench.wait_for_held(1);
    bench.submit("a", Direction::In, Priority::Background, 100);
    bench.wait_for_held(1 + DEPTH / 16);
    let elsewhere = bench.submit("b", Direction::In, Priority::Background, 100);
    assert_eq!(bench.wait(1), [elsewhere]);
    bench.submit("a", Direction::In, Priority::Foreground, 100);
    bench.wait_for_held(DEPTH);
    bench.recover();
    bench.wait(4);
}

fn devices(count: u64) -> Devices {
    let bounce = BounceOptions {
        block_bytes: 4096,
        blocks_count: 1,
        pin: Policy::Off,
        huge_pages: Policy::Off,
    };
    let mut devices = Devices::new(4, bounce, Arc::default());
    for number in 0..count {
        devices.index_of(number);
    }
    devices
}

#[test]
fn each_device_is_known_again_and_those_beyond_the_bound_share_the_last() {
    let mut devices = devices(40);
    assert_eq!(devices.all.len(), DEVICES_MAX);
    assert_eq!(devices.depth(), 4 * DEVICES_MAX);
    for number in 0..40 {
        let index = usize::try_from(number).unwrap().min(DEVICES_MAX - 1);
        assert_eq!(devices.index_of(number), index);
    }
    assert_eq!(lock(&devices.counters.devices).len(), DEVICES_MAX);
}

#[test]
fn devices_take_turns() {
    let mut devices = devices(3);
    let turns: Vec<usize> = (0..7).map(|_| devices.next()).collect();
    assert_eq!(turns, [1, 2, 0, 1, 2, 0, 1]);
}

#[test]
fn no_device_takes_anothers_bounce_blocks() {
    let mut devices = devices(2);
    assert!(devices.all[0].bounce.take().unwrap().is_some());
    assert!(devices.all[0].bounce.take().unwrap().is_none());
    assert!(devices.all[1].bounce.take().unwrap().is_some());
}
