//! Copying what a snapshot is made of: as shared blocks where the file systems can, else through
//! memory, beside whatever else the drives have to do.
//!
//! What goes through memory is compared with its checksums on the way. Blocks that are shared are
//! not read; whoever restores the snapshot compares them.

use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use super::shared::Shared;
use crate::base::error::{Error, Result};
use crate::io::{FileIdentity, Priority};
use crate::snapshot::{Manifest, SnapshotWriter, StateImage};
use crate::store::{CopiedVersion, Copying, Destination, FileRange, Observer, Part};
use crate::sys;

/// A snapshot in the making, and what it will hold.
#[derive(Debug)]
pub(super) struct InSnapshot<'a> {
    pub(super) writer: &'a SnapshotWriter,
    pub(super) manifest: &'a Manifest,
}

impl InSnapshot<'_> {
    /// Where a part goes.
    fn offset_of(&self, part: &Part) -> u64 {
        let parameter = &self.manifest.parameters[part.copied.index as usize];
        match parameter.states[part.state] {
            StateImage::At { offset_bytes, .. } => offset_bytes + part.before_bytes,
            StateImage::Zero => part.before_bytes,
        }
    }

    /// Copies versions in their order; `observer` hears which ones are done with.
    ///
    /// # Errors
    /// The observer's; `Checksum` naming parameter and state; what kept bytes from being moved.
    pub(super) fn copy(
        &self,
        shared: &Arc<Shared>,
        versions: &[CopiedVersion],
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let cloned = self.clone_all(shared, versions, observer)?;
        if cloned == versions.len() {
            return Ok(());
        }
        self.writer.reserve()?;
        shared.add_third_slots()?;
        let (engine, store) = (&shared.engine, &shared.store);
        let mut copying = Copying::new("snapshot", (engine, Priority::Background), store, self)?;
        copying.run(&versions[cloned..], observer)
    }

    /// Shares blocks as long as that can be done; says for how many versions it was.
    fn clone_all(
        &self,
        shared: &Shared,
        versions: &[CopiedVersion],
        observer: &mut dyn Observer,
    ) -> Result<usize> {
        let mut files = Files::default();
        for (number, copied) in versions.iter().enumerate() {
            observer.go_on()?;
            let mut cloned_bytes = 0;
            for part in shared.store.parts_of(copied) {
                let mut to = self.offset_of(&part);
                for range in shared.store.ranges_of(&part) {
                    let file = files.get(range.path, range.only)?.as_fd();
                    if !self
                        .writer
                        .clone_range(file, range.offset, range.len_bytes, to)?
                    {
                        return Ok(number);
                    }
                    to += range.len_bytes;
                }
                cloned_bytes += part.len_bytes;
            }
            observer.was_read(copied);
            observer.was_written(cloned_bytes);
        }
        Ok(versions.len())
    }
}

impl Destination for InSnapshot<'_> {
    fn ranges(&self, part: &Part) -> Vec<FileRange<'_>> {
        vec![FileRange {
            path: self.writer.data().path(),
            only: self.writer.data().identity().ok(),
            offset: self.offset_of(part),
            len_bytes: part.len_bytes,
        }]
    }
}

/// Files that blocks are shared with, open.
#[derive(Default)]
struct Files<'a>(Vec<(&'a CStr, File)>);

impl<'a> Files<'a> {
    /// The file that a path leads to, which must be this one.
    fn get(&mut self, path: &'a CStr, only: Option<FileIdentity>) -> Result<&File> {
        let at = match self.0.iter().position(|(known, _)| *known == path) {
            Some(at) => at,
            None => {
                let failed = |errno| Error::io("open", path.to_bytes(), None, errno, "");
                let opened = File::options()
                    .read(true)
                    .custom_flags(libc::O_NOFOLLOW)
                    .open(OsStr::from_bytes(path.to_bytes()));
                let file =
                    opened.map_err(|error| failed(error.raw_os_error().unwrap_or(libc::EIO)))?;
                let status = sys::fstat(file.as_fd()).map_err(failed)?;
                if only.is_some_and(|only| only != status.identity) {
                    return Err(failed(libc::ESTALE));
                }
                self.0.push((path, file));
                self.0.len() - 1
            }
        };
        Ok(&self.0[at].1)
    }
}
