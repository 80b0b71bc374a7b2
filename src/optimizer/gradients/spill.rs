//! Gradients on storage: written through a swapper of their own, read directly.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use crate::base::dtype::Dtype;
use crate::base::error::{Error, Result};
use crate::base::observe::{Counter, events};
use crate::base::sync::{Mutex, lock};
use crate::base::units::MIB;
use crate::io::tensor::KEEP_LENGTH;
use crate::io::{Engine, Tensor, Waiting};
use crate::memory::MemoryRange;
use crate::swapper::Swapper;
use crate::sys;

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
    /// Made at first use. The lock lets one thread at a time stage, which is all a swapper takes.
    swapper: Mutex<Option<Swapper>>,
    /// Every file that may exist, and whose gradient it holds.
    files: Mutex<BTreeMap<CString, u64>>,
    /// Bytes given to the swapper.
    pub(super) written_bytes: Counter,
}

impl Spill {
    pub(super) fn new(engine: &Engine, directory: &CStr) -> Spill {
        Spill {
            engine: engine.clone(),
            directory: directory.to_owned(),
            swapper: Mutex::default(),
            files: Mutex::default(),
            written_bytes: Counter::new(),
        }
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
        let paths = vec![path; ranges.len()];
        Arc::<Waiting>::default()
            .read(&self.engine, ranges, &paths)
            .map_err(|error| self.name(error))
    }

    /// Says in the error of a file whose gradient it holds.
    fn name(&self, error: Error) -> Error {
        let (Error::Io(failure) | Error::SizeMismatch(failure)) = &error else {
            return error;
        };
        let files = lock(&self.files);
        let is_it = |(path, _): &(&CString, &u64)| path.to_string_lossy() == failure.path;
        match files.iter().find(is_it) {
            Some((_, id)) => error.striking(&format!("gradient of parameter {id}")),
            None => error,
        }
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
        if self.engine.is_in_memory() {
            return;
        }
        for path in lock(&self.files).keys() {
            let status = sys::stat_identity(path);
            remove(path);
            if let Ok(status) = status {
                self.engine.close_file(status.identity);
            }
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
        .custom_flags(libc::O_NOFOLLOW)
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
