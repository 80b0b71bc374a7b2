//! Snapshots beside everything else.

use std::path::Path;

use tensorswap::base::error::{Error, Status};

use crate::support::*;
use crate::training::*;
use crate::world::{Saved, World, is_of_a_lie};

impl World {
    /// Has a snapshot made of the last commit.
    pub(crate) fn begin_snapshot(&mut self) {
        let saved = self.saved.last().unwrap().clone();
        let mut errors = Vec::new();
        if self.is("backend", "memory") {
            errors.push(Status::Unsupported);
        } else if self.snapshot.is_some() {
            errors.extend([Status::Busy, Status::Ok]);
        } else if saved.known.is_empty() {
            // A commit in the background takes along what is registered until it is done.
            errors.extend([Status::InvalidArgument, Status::Ok]);
        }
        let name = format!("snapshots/{}", self.snapshots_count);
        let directory = self.place().join(name);
        let result = self.optimizer().snapshot(&directory);
        if let Some(ticket) = self.settle("snapshot", result, &errors) {
            // One that was to be refused for another one may come after the end of that.
            self.end_snapshot(false);
            self.snapshots_count += 1;
            self.snapshot = Some((ticket, directory, saved));
        } else {
            assert!(!is_half_made(&directory) && !directory.exists());
        }
    }

    /// Waits for the snapshot, and restores it. One that fails leaves nothing, and everything else
    /// as it is.
    pub(crate) fn end_snapshot(&mut self, is_cancelled: bool) {
        let Some((ticket, directory, saved)) = self.snapshot.take() else {
            return;
        };
        if is_cancelled {
            self.engine.cancel(ticket).unwrap();
        }
        let ended = self.engine.wait(ticket, None).unwrap().outcome;
        let errors: &[Status] = match is_cancelled {
            true => &[Status::Cancelled, Status::Ok],
            false => &[],
        };
        let was_in_trouble = self.is_in_trouble;
        let made = self.settle("snapshot's end", ended, errors).is_some();
        let has_failed = self.is_in_trouble && !was_in_trouble;
        self.is_in_trouble = was_in_trouble;
        assert!(!is_half_made(&directory));
        if made {
            assert!(directory.exists());
        }
        // The one failure after which it is there: the sync of its name.
        if directory.exists() {
            assert!(made || has_failed, "a snapshot that was not made");
            self.restore(&directory, &saved);
            std::fs::remove_dir_all(&directory).unwrap();
        }
    }

    /// Restores a snapshot into stores of other directories and other types. On storage that fails
    /// or lies it is the right one, or there is an error; without further faults one only where
    /// storage has lied.
    fn restore(&mut self, directory: &Path, saved: &Saved) {
        let store = tempfile::tempdir_in(self.directory.path()).unwrap();
        for types in [saved.model.types.clone(), F32.to_vec()] {
            let restored = || restored(directory, store.path(), saved, &types);
            let mut outcome = restored();
            if let (Err(error), true) = (&outcome, self.mount.is_some()) {
                assert!(self.is_of_a_fault(error.status(), ""), "{error}");
                self.log.push(format!("    not restored: {error}"));
                self.switch_faults(false);
                outcome = restored();
                self.switch_faults(true);
            }
            match outcome {
                Ok(()) => self.restored_count += 1,
                Err(error) => {
                    let is_lie = self.is_lied_to() && is_of_a_lie(error.status());
                    assert!(is_lie, "{error}");
                    self.log.push(format!("    cannot be restored: {error}"));
                }
            }
        }
    }
}

/// Restores a snapshot into a new store, and compares all that it holds.
fn restored(directory: &Path, store: &Path, saved: &Saved, types: &[State]) -> Result<(), Error> {
    let engine = engine(&[("backend", "threads")]);
    let settings = [("store", "new"), ("views_max", "1")];
    let optimizer = try_open(&engine, store, &settings, types).unwrap();
    optimizer.restore(directory)?;
    let expected = &saved.model;
    assert_eq!(optimizer.step_number(), expected.step);
    assert_eq!(optimizer.user_data(), saved.user_data);
    assert!(optimizer.parameters_len() >= saved.known.len());
    let as_read = Model {
        types: types.to_vec(),
        ..expected.clone()
    };
    for id in &saved.known {
        for (state, values) in expected.records[id].states.iter().enumerate() {
            let found = read_state(&optimizer, &as_read, *id, state).unwrap();
            assert!(found == *values, "{id} {state} of {}", directory.display());
        }
    }
    Ok(())
}

/// Whether anything is left of a snapshot that is not whole.
fn is_half_made(directory: &Path) -> bool {
    directory.with_extension("partial").exists()
}
