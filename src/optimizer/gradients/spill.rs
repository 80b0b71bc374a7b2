//! Gradients on storage: written through a swapper of their own, read directly.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use crate::base::config::{BackendChoice, EngineOptions};
use crate::base::dtype::Dtype;
use crate::base::error::{Error, Result};
use crate::base::observe::{Counter, events};
use crate::base::sync::{Condvar, Mutex, lock};
use crate::base::units::MIB;
use crate::io::tensor::KEEP_LENGTH;
use crate::io::{Direction, Engine, Outcome, Sink, Tensor};
use crate::memory::MemoryRange;
use crate::swapper::Swapper;

/// Staging buffers of the swapper.
const BUFFERS: usize = 4;
/// Length of each: what the swapper submits at once.
const BUFFER_BYTES: u64 = 4 * MIB;

/// Files with gradients, one for each parameter and type, in the scratch directory. They are
/// removed when this is dropped.
#[derive(Debug)]
pub(super) struct Spill {
    engine: Engine,
    directory: CString,
    /// Whether the files are files, and not the engine's memory.
    is_on_disk: bool,
    /// Made at first use. The lock lets one thread at a time stage, which is all a swapper takes.
    swapper: Mutex<Option<Swapper>>,
    /// Every file that may exist, and whose gradient it holds.
    files: Mutex<BTreeMap<CString, u64>>,
    /// Bytes given to the swapper.
    pub(super) written_bytes: Counter,
}

impl Spill {
    pub(super) fn new(engine: &Engine, directory: &CStr) -> Result<Spill> {
        let backend = EngineOptions::from_config(engine.config())?.backend;
        Ok(Spill {
            engine: engine.clone(),
            directory: directory.to_owned(),
            is_on_disk: backend != BackendChoice::Memory,
            swapper: Mutex::default(),
            files: Mutex::default(),
            written_bytes: Counter::new(),
        })
    }

    /// The file for the gradient of a parameter in a type.
    ///
    /// # Errors
    /// `Io` where the directory cannot be made.
    pub(super) fn file(&self, id: u64, dtype: Dtype) -> Result<CString> {
        let mut path = self.directory.to_bytes().to_vec();
        path.extend_from_slice(format!("/gradient-{id}.{}", dtype.name()).as_bytes());
        let path = CString::new(path)
            .map_err(|_| Error::Internal("a path with a NUL inside".to_owned()))?;
        let mut files = lock(&self.files);
        if files.contains_key(&path) {
            return Ok(path);
        }
        if self.is_on_disk {
            let directory = self.directory.to_bytes();
            std::fs::create_dir_all(OsStr::from_bytes(directory)).map_err(|error| {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                Error::io("mkdir", directory, None, errno, "for gradients")
            })?;
        }
        files.insert(path.clone(), id);
        Ok(path)
    }

    /// Stages memory to be written to a file; it may be reused at return.
    ///
    /// # Errors
    /// `NoMemory`, `Memlock` at the first use; those of [`Swapper::swap_out`].
    pub(super) fn write(&self, path: &CStr, values: Tensor) -> Result<()> {
        let mut swapper = lock(&self.swapper);
        let swapper = match &mut *swapper {
            Some(swapper) => swapper,
            none => none.insert(self.start()?),
        };
        let values = values.with_flags(KEEP_LENGTH)?;
        swapper.swap_out(&[values], &[path])?;
        self.written_bytes.add(values.len_bytes());
        Ok(())
    }

    fn start(&self) -> Result<Swapper> {
        let swapper = Swapper::new(&self.engine, None)?;
        let buffers: Vec<_> = (0..BUFFERS)
            .map(|_| self.engine.allocate_buffer(BUFFER_BYTES))
            .collect::<Result<_>>()?;
        swapper.add_buffers(&buffers, Dtype::Bytes)?;
        Ok(swapper)
    }

    /// Lets everything staged be written, without waiting.
    ///
    /// # Errors
    /// `ShutDown`, `Poisoned`, `Forked`.
    pub(super) fn submit(&self) -> Result<()> {
        match &*lock(&self.swapper) {
            Some(swapper) => swapper.submit(),
            None => Ok(()),
        }
    }

    /// Writes everything that is staged and waits for all writes. False where nothing was ever
    /// staged.
    ///
    /// # Errors
    /// The first failure of a write since the last flush; `ShutDown`, `Poisoned`, `Forked`.
    pub(super) fn flush(&self) -> Result<bool> {
        match &*lock(&self.swapper) {
            Some(swapper) => swapper.flush(None).map_err(|error| self.name(error))?,
            None => return Ok(false),
        }
        Ok(true)
    }

    /// Reads ranges of one file, all at once; the data is there at return. What was staged before
    /// is written before. Any thread; several read at a time.
    ///
    /// # Errors
    /// Those of reading, and of writes to the ranges that failed.
    pub(super) fn read(&self, path: &CStr, ranges: &[Tensor]) -> Result<()> {
        if ranges.is_empty() {
            return Ok(());
        }
        // The engine lets requests on one range of a file take effect in the order submitted.
        self.submit()?;
        let waiter: Arc<Waiter> = Arc::default();
        let paths = vec![path; ranges.len()];
        let sink = Arc::clone(&waiter) as Arc<dyn Sink>;
        self.engine
            .swap_for(Direction::In, ranges, &paths, sink, 0)?;
        match waiter.wait().failure {
            Some(failure) => Err(self.name(failure.error)),
            None => Ok(()),
        }
    }

    /// Adds to an error of a file whose gradient it concerns.
    fn name(&self, mut error: Error) -> Error {
        if let Error::Io(failure) | Error::SizeMismatch(failure) = &mut error {
            let files = lock(&self.files);
            let found = files
                .iter()
                .find(|(path, _)| path.to_string_lossy() == failure.path);
            if let Some((_, id)) = found {
                let separator = if failure.detail.is_empty() { "" } else { ", " };
                failure.detail = format!("{}{separator}gradient of parameter {id}", failure.detail);
            }
        }
        error
    }
}

impl Drop for Spill {
    fn drop(&mut self) {
        // A forked child shares the files with its parent, which goes on using them.
        if matches!(self.engine.check(), Err(Error::Forked)) {
            return;
        }
        // DROP ORDER: the swapper waits for its writes, which would make the files anew.
        drop(lock(&self.swapper).take());
        if !self.is_on_disk {
            return;
        }
        for path in lock(&self.files).keys() {
            remove(path);
        }
    }
}

/// Removes a file, and gives its space back although the engine may still have it open.
fn remove(path: &CStr) {
    let file = OsStr::from_bytes(path.to_bytes());
    // Fails where there is no file, which the removal finds as well.
    let _ = std::fs::OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(file);
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            events::gradient_file_left(path.to_bytes(), error.raw_os_error().unwrap_or(0));
        }
        _ => {}
    }
}

/// Values in memory as a tensor with a place in a file.
///
/// # Errors
/// `InvalidArgument` for a place beyond the largest file offset.
pub(super) fn tensor(memory: MemoryRange, dtype: Dtype, first: u64, numel: u64) -> Result<Tensor> {
    let tensor = Tensor {
        memory,
        numel,
        dtype,
        flags: 0,
        file_offset: 0,
        user_tag: 0,
    };
    tensor.at(dtype.bytes_of(first)?)
}

/// Waits for the end of one request.
#[derive(Debug, Default)]
struct Waiter {
    outcome: Mutex<Option<Outcome>>,
    arrived: Condvar,
}

impl Waiter {
    fn wait(&self) -> Outcome {
        let mut outcome = lock(&self.outcome);
        loop {
            if let Some(outcome) = outcome.take() {
                return outcome;
            }
            outcome = self
                .arrived
                .wait(outcome)
                .unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }
}

impl Sink for Waiter {
    fn is_cancelled(&self, _token: u64) -> bool {
        false
    }

    fn progress(&self, _token: u64, _bytes: u64) {}

    fn complete(&self, _token: u64, outcome: Outcome) {
        *lock(&self.outcome) = Some(outcome);
        self.arrived.notify_all();
    }
}
