//! Third slots: made while a snapshot is copied, and removed when no record lies in one any more.

use std::sync::Arc;

use super::{Store, identities_of};
use crate::base::error::Result;
use crate::base::sync::lock;
use crate::io::FileIdentity;
use crate::store::log_file::Log;
use crate::store::places::{Directories, PlaceFile};
use crate::store::striping::Area;
use crate::store::table::Table;

impl Store {
    /// Makes room for a third slot of every record, in the spare files.
    ///
    /// # Errors
    /// `Io`: with `ENOSPC` it names the file, the bytes needed and those free; there are no third
    /// slots then that were not there before.
    pub(crate) fn add_spare(&self) -> Result<()> {
        let Some(disk) = &self.disk else {
            return Ok(());
        };
        let mut writer = lock(&disk.writer);
        let table = lock(&self.table);
        let (striping, end) = (Arc::clone(table.striping()), table.spare_end());
        drop(table);
        let is_new = writer.spare.is_empty();
        let reached = (|| {
            if is_new {
                let identity = writer.log.identity();
                writer.spare = disk.directories.create_files(Area::Spare, identity)?;
                lock(&self.paths.identities).spare = identities_of(&writer.spare)?;
            }
            for (place, spare) in writer.spare.iter_mut().enumerate() {
                spare.reach(striping.file_bytes(Area::Spare, place, end))?;
            }
            Ok(())
        })();
        if reached.is_err() && is_new {
            writer.spare.clear();
            // What stays of them is removed when the store is opened.
            let _ = disk.directories.remove_spare();
        }
        reached
    }

    /// Whether there are third slots.
    pub(crate) fn has_spare(&self) -> bool {
        let disk = self.disk.as_ref();
        disk.is_some_and(|disk| !lock(&disk.writer).spare.is_empty())
    }

    /// Takes third slots away, where no durable version lies in one. The caller knows that no other
    /// version does. Gives the files that are none of the store's any more.
    pub(crate) fn remove_spare(&self) -> Vec<FileIdentity> {
        let Some(disk) = &self.disk else {
            return Vec::new();
        };
        let mut writer = lock(&disk.writer);
        if lock(&self.table).spare_used_end().is_none() {
            writer.spare.clear();
            // What stays of them is removed when the store is opened.
            let _ = disk.directories.remove_spare();
            return std::mem::take(&mut lock(&self.paths.identities).spare);
        }
        Vec::new()
    }
}

/// Opens the spare files where the durable version of a record lies in them, and removes what there
/// is of them where none does.
pub(super) fn open_spare(
    directories: &Directories,
    log: &Log,
    table: &Table,
) -> Result<Vec<PlaceFile>> {
    if table.spare_used_end().is_some() {
        return directories.open_files(Area::Spare, log.identity(), table);
    }
    directories.remove_spare()?;
    Ok(Vec::new())
}
