//! The files that are written at the end.

use std::path::Path;

use rustix::fs::{Access, CWD, RenameFlags, access, renameat_with};
use rustix::io::Errno;

use crate::failure::Failure;
use crate::scratch::{Scratch, hold_signals};

/// What goes into the files.
#[derive(Debug)]
pub(super) struct Published {
    /// For `tsw_config_load_json`.
    pub(super) config: String,
    /// The section `aio` of a DeepSpeed configuration.
    pub(super) deepspeed: String,
    /// The report.
    pub(super) page: String,
}

/// The names of the files.
pub(super) fn names() -> [&'static str; 3] {
    [
        "tensorswap.json",
        "deepspeed_aio.json",
        "tensorswap-tune.html",
    ]
}

/// Checks before all work that the files can be written.
///
/// # Errors
/// `Refused` names what is in the way.
pub(super) fn check(directory: &Path, force: bool) -> Result<(), Failure> {
    let failed = |errno: Errno| Failure::at("write to", directory)(errno.into());
    access(directory, Access::WRITE_OK | Access::EXEC_OK).map_err(failed)?;
    if !directory.is_dir() {
        return Err(failed(Errno::NOTDIR));
    }
    let taken = names().map(|name| directory.join(name)).into_iter();
    match taken.clone().find(|path| path.symlink_metadata().is_ok()) {
        Some(path) if !force => Err(exists(&path)),
        _ => match taken.clone().find(|path| path.is_dir()) {
            Some(path) => Err(Failure::Refused(format!(
                "{} is a directory",
                path.display()
            ))),
            None => Ok(()),
        },
    }
}

fn exists(path: &Path) -> Failure {
    let path = path.display();
    Failure::Refused(format!("{path} exists; --force writes over it"))
}

impl Published {
    /// Writes all files: each appears whole, and over another one only with `force`. Where one
    /// cannot be put in place, those that were not there before are taken away again.
    ///
    /// # Errors
    /// `Refused`.
    pub(super) fn write(&self, directory: &Path, force: bool) -> Result<(), Failure> {
        let scratch = Scratch::new(directory)?;
        let contents = [&self.config, &self.deepspeed, &self.page];
        for (name, content) in names().into_iter().zip(contents) {
            let path = scratch.path().join(name);
            std::fs::write(&path, content).map_err(Failure::at("write", &path))?;
        }
        let signals = hold_signals();
        let placed = place(scratch.path(), directory, force);
        drop(signals);
        placed
    }
}

fn place(from: &Path, directory: &Path, force: bool) -> Result<(), Failure> {
    for (index, name) in names().into_iter().enumerate() {
        let (from, to) = (from.join(name), directory.join(name));
        let flags = match force {
            true => RenameFlags::empty(),
            false => RenameFlags::NOREPLACE,
        };
        let moved = match renameat_with(CWD, &from, CWD, &to, flags) {
            // Some file systems do not know the flag; a link never goes over another file either.
            Err(Errno::INVAL | Errno::NOSYS) if !force => {
                std::fs::hard_link(&from, &to).map_err(|error| error.kind())
            }
            other => other.map_err(|errno| std::io::Error::from(errno).kind()),
        };
        if let Err(kind) = moved {
            if !force {
                names()[..index].iter().for_each(|name| {
                    // Only what was just put there.
                    let _ = std::fs::remove_file(directory.join(name));
                });
            }
            return Err(match kind {
                std::io::ErrorKind::AlreadyExists => exists(&to),
                kind => Failure::Refused(format!("write {}: {kind}", to.display())),
            });
        }
    }
    Ok(())
}
