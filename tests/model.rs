//! Random lists of requests, many in flight at once on few files, against files kept in memory:
//! on every backend the same bytes, lengths and results as one after the other.
#![allow(unsafe_code, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod support;

use std::collections::VecDeque;
use std::ffi::CString;
use std::path::Path;

use support::*;
use tensorswap::base::dtype::Dtype;
use tensorswap::base::error::Status;
use tensorswap::io::{Engine, Tensor, Ticket};
use tensorswap::memory::Buffer;

const FILES: usize = 4;
/// The same file by other names.
const SPELLINGS: [&str; 4] = ["", "./", "sub/../", "link-"];
const IN_FLIGHT_MAX: usize = 16;
const STEPS: usize = 120;
const GUARD: u8 = 0xA5;
const BUFFER_BYTES: usize = 256 << 10;

/// Memory of one tensor in flight.
enum Memory {
    Heap {
        bytes: Vec<u8>,
        skew: usize,
    },
    /// At an offset of a pinned buffer, which nobody else uses meanwhile.
    Pinned {
        buffer: usize,
        offset: usize,
    },
}

struct Piece {
    memory: Memory,
    len: usize,
    /// What a read must deliver.
    expected: Vec<u8>,
}

struct Pending {
    ticket: Ticket,
    pieces: Vec<Piece>,
    reads: bool,
    /// A read that must fail because a file is too short, or not there.
    too_short: bool,
    missing: bool,
    cancelled: bool,
}

struct World<'a> {
    engine: &'a Engine,
    directory: &'a Path,
    random: Random,
    aliases: bool,
    files: Vec<Vec<u8>>,
    /// Files that nobody has written yet do not exist.
    exists: [bool; FILES],
    buffers: Vec<Buffer>,
    free: Vec<usize>,
    pending: VecDeque<Pending>,
    log: Vec<String>,
}

impl Drop for World<'_> {
    /// What is in flight must not be freed under the engine.
    fn drop(&mut self) {
        let _ = self.engine.shutdown(PATIENCE);
    }
}

/// Where a tensor of a list goes.
struct Spot {
    file: usize,
    path: CString,
    offset: usize,
    len: usize,
    keeps: bool,
}

impl World<'_> {
    fn len(&mut self) -> usize {
        match self.random.below(12) {
            0 => 0,
            1..=3 => self.random.below(600),
            4 | 5 => 4096 * self.random.below(6),
            6 => self.random.below(1 << 20),
            7 => 512 * self.random.below(40),
            _ => self.random.below(20_000),
        }
    }

    fn offset(&mut self) -> usize {
        match self.random.below(8) {
            0 | 1 => 0,
            2 => 4096 * self.random.below(12),
            3 => 512 * self.random.below(80),
            4 => self.random.below(200),
            _ => self.random.below(50_000),
        }
    }

    fn path_of(&mut self, file: usize) -> CString {
        let spelling = if self.aliases {
            *self.random.pick(&SPELLINGS)
        } else {
            ""
        };
        path(self.directory, &format!("{spelling}f{file}"))
    }

    /// A list that may be swapped out: each file by one name only, nothing overlapping.
    fn spots(&mut self, may_overlap: bool) -> Vec<Spot> {
        let names: Vec<CString> = (0..FILES).map(|file| self.path_of(file)).collect();
        let few = 1 + self.random.below(2);
        let first = self.random.below(FILES);
        let count = 1 + self.random.below(5);
        let mut spots: Vec<Spot> = Vec::new();
        for _ in 0..count {
            let file = (first + self.random.below(few)) % FILES;
            let spot = Spot {
                file,
                path: names[file].clone(),
                offset: self.offset(),
                len: self.len(),
                keeps: self.random.one_in(2),
            };
            let overlaps = spots.iter().any(|other| {
                other.file == spot.file
                    && other.offset < spot.offset + spot.len
                    && spot.offset < other.offset + other.len
            });
            if may_overlap || !overlaps {
                spots.push(spot);
            }
        }
        spots
    }

    fn place(&mut self, len: usize) -> Memory {
        let skew = *self.random.pick(&[0, 0, 1, 8, 512, 513]);
        if self.random.one_in(2)
            && len + 2 * 4096 <= BUFFER_BYTES
            && let Some(buffer) = self.free.pop()
        {
            let offset = 4096 * self.random.below((BUFFER_BYTES - len) / 4096) + skew;
            let offset = offset.min(BUFFER_BYTES - len);
            return Memory::Pinned { buffer, offset };
        }
        // Guards on both sides.
        let bytes = vec![GUARD; len + 2 * 4096];
        let aligned = bytes.as_ptr().align_offset(4096);
        Memory::Heap {
            skew: aligned + skew,
            bytes,
        }
    }

    fn slice<'s>(&'s mut self, memory: &'s mut Memory, len: usize) -> &'s mut [u8] {
        match memory {
            Memory::Heap { bytes, skew } => &mut bytes[*skew..*skew + len],
            Memory::Pinned { buffer, offset } => {
                let start = self.buffers[*buffer].as_ptr().wrapping_add(*offset);
                // SAFETY: inside the buffer, which is this tensor's alone.
                unsafe { std::slice::from_raw_parts_mut(start, len) }
            }
        }
    }

    fn tensor_at(&mut self, memory: &mut Memory, spot: &Spot) -> Tensor {
        let slice = self.slice(memory, spot.len);
        // SAFETY: the memory stays in `pending` until the request is over.
        let tensor =
            unsafe { Tensor::new(slice.as_mut_ptr(), slice.len() as u64, Dtype::Bytes) }.unwrap();
        let tensor = tensor.at(spot.offset as u64).unwrap();
        if spot.keeps { keep(tensor) } else { tensor }
    }

    fn swap_out(&mut self) {
        let spots = self.spots(false);
        let mut tensors = Vec::new();
        let mut pieces = Vec::new();
        let mut written = Vec::new();
        for spot in &spots {
            let mut memory = self.place(spot.len);
            let content = self.random.bytes(spot.len);
            self.slice(&mut memory, spot.len).copy_from_slice(&content);
            tensors.push(self.tensor_at(&mut memory, spot));
            written.push(content);
            pieces.push(Piece {
                memory,
                len: spot.len,
                expected: Vec::new(),
            });
        }
        self.write_model(&spots, &written);
        self.submit(&spots, &tensors, pieces, false);
        if self.random.one_in(12) {
            self.cancel_write(&spots);
        }
    }

    fn write_model(&mut self, spots: &[Spot], written: &[Vec<u8>]) {
        for file in 0..FILES {
            let list = || {
                spots
                    .iter()
                    .zip(written)
                    .filter(move |(spot, _)| spot.file == file)
            };
            let Some(end) = list().map(|(spot, _)| spot.offset + spot.len).max() else {
                continue;
            };
            let exact = list().any(|(spot, _)| spot.offset == 0 && !spot.keeps);
            self.exists[file] = true;
            let content = &mut self.files[file];
            let len = if exact { end } else { end.max(content.len()) };
            content.resize(len.max(content.len()), 0);
            for (spot, bytes) in list() {
                content[spot.offset..spot.offset + spot.len].copy_from_slice(bytes);
            }
            content.truncate(len);
        }
    }

    /// Cancels the request submitted last; its files are whole again afterwards.
    fn cancel_write(&mut self, spots: &[Spot]) {
        let mut pending = self.pending.pop_back().unwrap();
        pending.cancelled = true;
        self.engine.cancel(pending.ticket).unwrap();
        if self.finish(pending) {
            return;
        }
        self.log.push("that was cancelled".to_owned());
        for file in 0..FILES {
            if spots.iter().any(|spot| spot.file == file) {
                let len = 1 + self.random.below(30_000);
                let mut bytes = self.random.bytes(len);
                let name = self.path_of(file);
                let ticket = self
                    .engine
                    .swap_out(&[tensor(&mut bytes, 0)], &[&name])
                    .unwrap();
                assert_eq!(wait(self.engine, ticket).outcome, Ok(()));
                self.files[file] = bytes;
            }
        }
    }

    fn swap_in(&mut self) {
        let mut spots = self.spots(true);
        // Mostly inside of what there is.
        let within = !self.random.one_in(4);
        for spot in &mut spots {
            spot.keeps = false;
            let len = self.files[spot.file].len();
            if within {
                spot.offset = spot.offset.min(len);
                spot.len = spot.len.min(len - spot.offset);
            }
        }
        let too_short = spots
            .iter()
            .any(|spot| spot.len > 0 && spot.offset + spot.len > self.files[spot.file].len());
        let mut tensors = Vec::new();
        let mut pieces = Vec::new();
        for spot in &spots {
            let mut memory = self.place(spot.len);
            self.slice(&mut memory, spot.len).fill(!GUARD);
            tensors.push(self.tensor_at(&mut memory, spot));
            let end = spot.offset + spot.len;
            pieces.push(Piece {
                memory,
                len: spot.len,
                expected: match (too_short, spot.len) {
                    (false, 1..) => self.files[spot.file][spot.offset..end].to_vec(),
                    _ => vec![!GUARD; spot.len],
                },
            });
        }
        self.submit(&spots, &tensors, pieces, true);
        let missing = spots.iter().any(|spot| !self.exists[spot.file]);
        let pending = self.pending.back_mut().unwrap();
        (pending.too_short, pending.missing) = (too_short, missing);
        if self.random.one_in(12) {
            let pending = self.pending.back_mut().unwrap();
            pending.cancelled = true;
            self.engine.cancel(pending.ticket).unwrap();
        }
    }

    fn submit(&mut self, spots: &[Spot], tensors: &[Tensor], pieces: Vec<Piece>, reads: bool) {
        let paths: Vec<_> = spots.iter().map(|spot| spot.path.as_c_str()).collect();
        let ticket = if reads {
            self.engine.swap_in(tensors, &paths)
        } else {
            self.engine.swap_out(tensors, &paths)
        }
        .unwrap();
        let what = spots.iter().map(|spot| {
            let name = spot.path.to_string_lossy();
            let name = name.rsplit("//").next().unwrap_or_default();
            format!(
                "{} {}+{}{}",
                &name[name.len().saturating_sub(12)..],
                spot.offset,
                spot.len,
                if spot.keeps { " keep" } else { "" }
            )
        });
        let verb = if reads { "in" } else { "out" };
        let line = format!(
            "{ticket:#x} {verb}: {}",
            what.collect::<Vec<_>>().join("; ")
        );
        self.log.push(line);
        self.pending.push_back(Pending {
            ticket,
            pieces,
            reads,
            too_short: false,
            missing: false,
            cancelled: false,
        });
    }

    /// Waits for a request and checks what it brought; false if it was cancelled.
    fn finish(&mut self, mut pending: Pending) -> bool {
        let completion = wait(self.engine, pending.ticket);
        let status = completion.outcome.as_ref().map_err(|error| error.status());
        let cancelled = pending.cancelled && status == Err(Status::Cancelled);
        let ticket = pending.ticket;
        if !cancelled {
            let as_expected = match status {
                Ok(()) => !pending.too_short,
                Err(Status::SizeMismatch) => pending.too_short,
                // A later write may have made the file, which is then still empty.
                Err(Status::NotFound) => pending.missing,
                Err(_) => false,
            };
            assert!(as_expected, "{ticket:#x} {:?}", completion.outcome);
        }
        for piece in &mut pending.pieces {
            if pending.reads && !cancelled && !pending.too_short && !pending.missing {
                let got = self.slice(&mut piece.memory, piece.len);
                assert!(got == piece.expected, "{ticket:#x} delivered wrong bytes");
            }
            match &piece.memory {
                Memory::Heap { bytes, skew } => {
                    let around = bytes[..*skew].iter().chain(&bytes[skew + piece.len..]);
                    assert!(around.copied().all(|byte| byte == GUARD), "{ticket:#x}");
                }
                Memory::Pinned { buffer, .. } => self.free.push(*buffer),
            }
        }
        if !cancelled && !pending.too_short && !pending.missing {
            let total: usize = pending.pieces.iter().map(|piece| piece.len).sum();
            assert_eq!(completion.bytes_done, total as u64);
        }
        !cancelled
    }

    fn finish_some(&mut self, keep: usize) {
        while self.pending.len() > keep {
            let at = self.random.below(self.pending.len());
            let pending = self.pending.remove(at).unwrap();
            self.finish(pending);
        }
    }

    fn compare(&mut self, on_disk: bool) {
        self.finish_some(0);
        for file in 0..FILES {
            let expected = &self.files[file];
            let name = format!("f{file}");
            if !self.exists[file] {
                let name = path(self.directory, &name);
                let (_, done) = read(self.engine, &name, 0, 0);
                assert_eq!(done.outcome.unwrap_err().status(), Status::NotFound);
                continue;
            }
            if on_disk {
                let got = std::fs::read(self.directory.join(&name)).unwrap();
                assert_eq!(got.len(), expected.len(), "length of {name}");
                let differs = got.iter().zip(expected).position(|(a, b)| a != b);
                assert_eq!(differs, None, "{name} differs");
            }
            let name = path(self.directory, &name);
            let (got, done) = read(self.engine, &name, expected.len(), 0);
            assert_eq!(done.outcome, Ok(()));
            assert!(got == *expected);
            let (_, done) = read(self.engine, &name, expected.len() + 1, 0);
            assert_eq!(done.outcome.unwrap_err().status(), Status::SizeMismatch);
        }
    }
}

fn run(seed: u64, settings: &[(&str, &str)]) {
    let new_files = seed % 2 == 1;
    let on_disk = !settings.contains(&("backend", "memory"));
    let directory = directory();
    let engine = engine(settings);
    std::fs::create_dir(directory.path().join("sub")).unwrap();
    for file in (0..FILES).filter(|_| !new_files) {
        let name = directory.path().join(format!("f{file}"));
        if on_disk {
            std::fs::write(&name, b"").unwrap();
            std::fs::hard_link(&name, directory.path().join(format!("link-f{file}"))).unwrap();
        } else {
            let name = path(directory.path(), &format!("f{file}"));
            assert_eq!(write(&engine, &name, b"", 0).outcome, Ok(()));
        }
    }
    let mut world = World {
        engine: &engine,
        directory: directory.path(),
        random: Random(seed),
        aliases: on_disk && !new_files,
        exists: [!new_files; FILES],
        files: vec![Vec::new(); FILES],
        buffers: (0..8)
            .map(|_| engine.allocate_buffer(BUFFER_BYTES as u64).unwrap())
            .collect(),
        free: (0..8).collect(),
        pending: VecDeque::new(),
        log: vec![format!("{settings:?}")],
    };
    let what = format!("seed {seed}");
    trial(
        &what,
        &mut world,
        |world| &world.log,
        |world| {
            for step in 0..STEPS {
                if world.random.below(5) < 3 {
                    world.swap_out();
                } else {
                    world.swap_in();
                }
                world.finish_some(IN_FLIGHT_MAX);
                if step % 40 == 39 {
                    world.compare(on_disk);
                }
            }
            world.compare(on_disk);
        },
    );
    assert_eq!(engine.stats().requests_in_flight_count, 0);
    assert_eq!(engine.stats().in_flight_count, 0);
}

/// Each backend under settings that change how operations are cut, ordered and kept.
fn sweep(backend: &str) {
    let rounds = scale();
    for round in 0..rounds {
        for (index, settings) in [
            [
                ("queue_depth", "32"),
                ("block_bytes", "1MiB"),
                ("open_files_max", "0"),
            ],
            [
                ("queue_depth", "1"),
                ("block_bytes", "4096"),
                ("open_files_max", "1"),
            ],
            [
                ("queue_depth", "5"),
                ("block_bytes", "12KiB"),
                ("open_files_max", "2"),
            ],
            [
                ("queue_depth", "64"),
                ("block_bytes", "64KiB"),
                ("open_files_max", "4"),
            ],
        ]
        .iter()
        .enumerate()
        {
            for direct in ["prefer", "off"] {
                let mut settings = settings.to_vec();
                settings.extend([
                    ("backend", backend),
                    ("direct_io", direct),
                    ("threads", "3"),
                ]);
                for new_files in 0..2 {
                    let seed = round * 1000 + index as u64 * 10 + u64::from(direct == "off") * 2;
                    run(seed + new_files, &settings);
                }
            }
        }
    }
}

#[test]
fn io_uring_does_what_the_model_does() {
    sweep("io_uring");
}

#[test]
fn threads_do_what_the_model_does() {
    sweep("threads");
}

#[test]
fn memory_does_what_the_model_does() {
    sweep("memory");
}
