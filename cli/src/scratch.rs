//! Directories for files that do not outlive the run, also where a signal ends it.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::failure::Failure;

/// What is to be removed.
static DIRECTORIES: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// BOUND: how often a directory that files still appear in is removed again.
const REMOVALS_MAX: u32 = 100;

fn directories() -> MutexGuard<'static, Vec<PathBuf>> {
    DIRECTORIES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A directory that is removed, with all that is in it, when this is dropped or a signal comes.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Makes one inside of `parent`.
    ///
    /// # Errors
    /// `Refused` names the parent.
    pub(crate) fn new(parent: &Path) -> Result<Scratch, Failure> {
        // Held while it is made: a signal finds it in the list, or it is never made.
        let mut list = directories();
        let made = tempfile::Builder::new()
            .prefix(".tensorswap-")
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(parent)
            .map_err(|error| {
                let error = error
                    .raw_os_error()
                    .map_or(error, std::io::Error::from_raw_os_error);
                Failure::at("write to", parent)(error)
            })?;
        let path = made.keep();
        list.push(path.clone());
        Ok(Scratch { path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let mut list = directories();
        remove(&self.path);
        list.retain(|path| *path != self.path);
    }
}

/// A directory that is removed, with all that is in it, when a signal comes while this lives;
/// otherwise whoever made it sees to it.
#[derive(Debug)]
pub(crate) struct RemovedOnSignal(PathBuf);

pub(crate) fn remove_on_signal_too(path: PathBuf) -> RemovedOnSignal {
    directories().push(path.clone());
    RemovedOnSignal(path)
}

impl Drop for RemovedOnSignal {
    fn drop(&mut self) {
        directories().retain(|path| *path != self.0);
    }
}

/// Keeps signals waiting while this lives: what is begun is also ended.
pub(crate) fn hold_signals() -> impl Drop {
    directories()
}

/// Removes a directory, although somebody may still be making files in it.
fn remove(path: &Path) {
    for _ in 0..REMOVALS_MAX {
        match std::fs::remove_dir_all(path) {
            Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => {}
            _ => return,
        }
    }
}

/// From now on a signal that asks the process to end removes all scratch directories first, and
/// then ends it as it would have: who started it sees that a signal did.
///
/// # Errors
/// `Refused` where the system gives no thread.
pub(crate) fn remove_on_signals() -> Result<(), Failure> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            if let Some(signal) = signals.forever().next() {
                // Never released: nobody makes another one.
                let list = directories();
                list.iter().for_each(|path| remove(path));
                crate::progress::leave_line();
                let _ = signal_hook::low_level::emulate_default_handler(signal);
                std::process::exit(128 + signal);
            }
        })?;
    Ok(())
}
