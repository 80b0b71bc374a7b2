//! Snapshots of the last committed step, made while training goes on.
//!
//! The slots that hold that step are *pinned*. A thread of its own copies them, and lets go of each
//! when it is done with it. What is written meanwhile goes to the other slot of its record; once
//! that one holds a newer step, to a third one, which every record gets for this time in the spare
//! files. Where there is no space for those it waits until its record was copied. Where blocks can
//! be shared the copy takes moments, and third slots are not made.

use std::path::Path;
use std::sync::Arc;

use super::copying::InSnapshot;
use super::core::Core;
use super::optimizer_swapper::Optimizer;
use super::shared::Shared;
use crate::base::error::{Error, Result, Status};
use crate::base::observe::events;
use crate::base::sync::lock;
use crate::io::{Failure, Outcome, Sink, Ticket};
use crate::snapshot::{Manifest, SnapshotParameter, SnapshotWriter, StateImage};
use crate::store::{CopiedVersion, DATA_SLOTS, Layout, Observer, StoredRecord, Version};
use crate::sys;

/// A snapshot that was asked for.
#[derive(Debug)]
struct Making {
    shared: Arc<Shared>,
    ticket: Ticket,
    sink: Arc<dyn Sink>,
    writer: SnapshotWriter,
    manifest: Manifest,
    versions: Vec<CopiedVersion>,
}

impl Optimizer {
    /// Copies the step that was committed last into `directory`, in the background: all states of
    /// all parameters, the step's number and the user data. It appears there whole, or not at all.
    /// Waits for a commit that is under way, not for the copy; its ticket is the engine's.
    /// Steps, commits and everything else go on meanwhile.
    ///
    /// Where the file system shares blocks between files (btrfs, xfs) nothing is copied. Else
    /// records that are updated meanwhile take space for a third version, until the commits after
    /// it; without that space, steps wait for the copy of what they are about to write over.
    ///
    /// # Errors
    /// `InvalidArgument` where nothing was committed, or for a path without a name at its end;
    /// `Busy` while another snapshot is being made, and without a free ticket; `Io`: `EEXIST` where
    /// something other than an empty directory has the name, `ENOSPC` naming the file and the bytes
    /// needed; `Locked` where another process is making it. The ticket ends with `Checksum` where a
    /// record is not what was written, with `Io`, or with `Cancelled`, also when the optimizer is
    /// dropped.
    pub fn snapshot(&self, directory: &Path) -> Result<Ticket> {
        let _desk = self.enter()?;
        let shared = &self.shared;
        if shared.engine.is_in_memory() {
            return Err(Error::Unsupported {
                message: "a store in memory has no committed step to copy".to_owned(),
                errno: 0,
            });
        }
        let mut core = lock(&shared.core);
        core.check_no_snapshot()?;
        core.check_alive()?;
        while !core.commit.is_idle() {
            core = shared.wait_for(core, false);
        }
        if let Some(error) = &core.failed {
            return Err(error.clone());
        }
        let (manifest, versions) = plan(shared)?;
        core.pin(&versions);
        drop(core);
        let begun = self.begin_snapshot(directory, manifest, versions);
        if begun.is_err() {
            shared.end_snapshot();
        }
        begun
    }

    fn begin_snapshot(
        &self,
        directory: &Path,
        manifest: Manifest,
        versions: Vec<CopiedVersion>,
    ) -> Result<Ticket> {
        let shared = Arc::clone(&self.shared);
        let writer = SnapshotWriter::create(directory, manifest.data_bytes)?;
        let (ticket, sink) = shared.engine.open_ticket(manifest.data_bytes)?;
        let withdrawn = shared.engine.clone();
        let making = Making {
            shared,
            ticket,
            sink,
            writer,
            manifest,
            versions,
        };
        let thread = std::thread::Builder::new()
            .name("tsw-snapshot".to_owned())
            .spawn(move || {
                sys::block_signals();
                making.run();
            });
        match thread {
            Ok(thread) => {
                let last = lock(&self.snapshot_thread).replace(thread);
                // It has ended but for its last breath: its snapshot is over.
                drop(last.map(std::thread::JoinHandle::join));
                Ok(ticket)
            }
            Err(error) => {
                withdrawn.withdraw_ticket(ticket);
                Err(Error::Unsupported {
                    message: format!("the snapshot's thread could not be started: {error}"),
                    errno: error.raw_os_error().unwrap_or(0),
                })
            }
        }
    }
}

impl Making {
    fn run(mut self) {
        let versions = std::mem::take(&mut self.versions);
        let to = InSnapshot {
            writer: &self.writer,
            manifest: &self.manifest,
        };
        let mut observer = Progress {
            shared: &self.shared,
            ticket: self.ticket,
            sink: &*self.sink,
        };
        let copied = to.copy(&self.shared, &versions, &mut observer);
        self.writer.data().close_in(&self.shared.engine);
        let made = copied.and_then(|()| self.writer.publish(&self.manifest));
        self.shared.end_snapshot();
        let failure = made.err().map(|error| Failure {
            error,
            index: 0,
            user_tag: 0,
        });
        let bytes_done = match failure {
            None => self.manifest.data_bytes,
            Some(_) => 0,
        };
        let outcome = Outcome {
            bytes_done,
            failure,
        };
        self.sink.complete(self.ticket, outcome);
    }
}

/// Lets go of what was copied, and tells the ticket.
struct Progress<'a> {
    shared: &'a Arc<Shared>,
    ticket: Ticket,
    sink: &'a dyn Sink,
}

impl Observer for Progress<'_> {
    fn go_on(&mut self) -> Result<()> {
        match self.sink.is_cancelled(self.ticket) || lock(&self.shared.core).closing {
            true => Err(Error::Cancelled("the snapshot was cancelled".to_owned())),
            false => Ok(()),
        }
    }

    fn was_read(&mut self, copied: &CopiedVersion) {
        self.shared.unpin(&[copied.index]);
    }

    fn was_written(&mut self, bytes: u64) {
        self.sink.progress(self.ticket, bytes);
    }
}

impl Shared {
    /// Makes third slots, so that nothing has to wait for the copy. Goes on without them where
    /// there is no space.
    ///
    /// # Errors
    /// `Io` for every other reason.
    pub(super) fn add_third_slots(self: &Arc<Self>) -> Result<()> {
        match self.store.add_spare() {
            Ok(()) => {}
            Err(error) if error.status() == Status::NoSpace => {
                events::snapshot_holds_writes(&error.to_string());
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        let mut core = lock(&self.core);
        core.has_third_slots = true;
        core.release_held();
        drop(self.pump(core));
        Ok(())
    }

    /// Lets go of the slots of records that were copied.
    fn unpin(self: &Arc<Self>, records: &[u32]) {
        let mut core = lock(&self.core);
        for index in records {
            core.record_mut(*index).pinned = None;
        }
        core.release_held();
        drop(self.pump(core));
        self.changed.notify_all();
    }

    /// Lets go of everything that a snapshot held.
    fn end_snapshot(self: &Arc<Self>) {
        let mut core = lock(&self.core);
        core.has_snapshot = false;
        core.has_third_slots = false;
        let all: Vec<u32> = core.indices().collect();
        drop(core);
        self.unpin(&all);
    }
}

impl Core {
    fn check_no_snapshot(&self) -> Result<()> {
        match self.has_snapshot {
            true => Err(Error::Busy(
                "a snapshot is being made; wait for its ticket".to_owned(),
            )),
            false => Ok(()),
        }
    }

    fn pin(&mut self, versions: &[CopiedVersion]) {
        self.has_snapshot = true;
        for copied in versions {
            self.record_mut(copied.index).pinned = Some(copied.version.slot);
        }
    }

    /// Has records written that waited for their slot to be copied.
    fn release_held(&mut self) {
        for index in std::mem::take(&mut self.held) {
            if self.record(index).in_commit {
                self.commit_queue.push_back(index);
            } else {
                self.write_queue.push_back(index);
            }
        }
    }

    /// Whether third slots are needed: one holds a version that counts, or may get one.
    pub(super) fn uses_spare(&self) -> bool {
        let is_third =
            |version: Option<Version>| version.is_some_and(|version| version.slot >= DATA_SLOTS);
        let uses =
            |record: &super::record::Record| is_third(record.base) || is_third(record.working);
        self.has_snapshot || self.records.iter().any(uses)
    }
}

/// What a snapshot of the last committed step holds, and what is to be copied for it. No commit is
/// under way.
fn plan(shared: &Shared) -> Result<(Manifest, Vec<CopiedVersion>)> {
    let committed = shared.store.committed();
    if committed.records.is_empty() {
        return Err(Error::invalid(
            "nothing was committed yet that a snapshot could hold; commit first",
        ));
    }
    let layout = &committed.layout;
    let mut pinned = Vec::new();
    let mut parameters = Vec::new();
    let mut data_bytes = 0;
    for (index, record) in (0..).zip(&committed.records) {
        let states = images_of(layout, record, &mut data_bytes);
        let is_all_zeros = |version: &Version| version.zero_states == layout.all_states();
        if let Some(version) = record.durable.filter(|version| !is_all_zeros(version)) {
            pinned.push(CopiedVersion {
                index,
                id: record.id,
                numel: record.numel,
                offset: record.offset,
                version,
            });
        }
        parameters.push(SnapshotParameter {
            id: record.id,
            name: record.name.as_deref().map(str::to_owned),
            numel: record.numel,
            states,
        });
    }
    let manifest = Manifest {
        step: committed.step,
        user_data: committed.user_data,
        states: layout.states.clone(),
        parameters,
        data_bytes,
    };
    Ok((manifest, pinned))
}

/// Where the images of a record will lie in the snapshot: one behind the other, without those that
/// are zero, behind what is there already.
fn images_of(layout: &Layout, record: &StoredRecord, end: &mut u64) -> Vec<StateImage> {
    let image_of = |state: usize| match record.durable {
        Some(version) if !version.is_zero(state) => {
            let offset_bytes = *end;
            *end += layout.copied_bytes(state, record.numel);
            StateImage::At {
                offset_bytes,
                checksum: version.checked.then_some(version.checksums[state]),
            }
        }
        _ => StateImage::Zero,
    };
    (0..layout.states.len()).map(image_of).collect()
}
