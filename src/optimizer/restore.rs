//! Bringing back what a snapshot holds, into a new store.

use std::path::Path;

use super::core::Core;
use super::filling::{Origin, Recipe};
use super::optimizer_swapper::Optimizer;
use crate::base::error::{Error, Result};
use crate::io::Tensor;
use crate::memory::MemoryRange;
use crate::memory::numbers::is_convertible;
use crate::snapshot::{Snapshot, SnapshotParameter, StateImage};

/// Which state of a snapshot each state of the store is made of.
type Sources = Vec<usize>;

impl Optimizer {
    /// Brings back a snapshot: registers its parameters, gives all states their values, converted
    /// to the types on storage that were added, compares the checksums on the way, and commits
    /// with the snapshot's step and user data. On a new store, after `add_state` of the snapshot's
    /// states, in any order. Directories, pinned memory, rank and types on storage may differ from
    /// those it was made with.
    ///
    /// # Errors
    /// Before anything changes: `NOT_FOUND` and others of opening it, `Corrupt`, `Unsupported` for
    /// a later version; `StoreMismatch` for other states; `InvalidArgument` where there are
    /// parameters already; `Busy`. Then: `Checksum` naming the parameter and the state; `Io`, with
    /// `ENOSPC` naming the bytes needed. Nothing is committed then, and the store is to be made
    /// anew.
    pub fn restore(&self, directory: &Path) -> Result<()> {
        let desk = self.enter()?;
        let snapshot = Snapshot::open(directory)?;
        let core = self.settled_between_steps()?;
        core.check_alive()?;
        if !core.records.is_empty() {
            return Err(Error::invalid(
                "a snapshot is restored into a new store, and this one has parameters",
            ));
        }
        let sources = sources_of(&core, &snapshot)?;
        drop(core);
        drop(desk);
        let manifest = snapshot.manifest();
        for parameter in &manifest.parameters {
            self.add_parameter(parameter.id, parameter.name.as_deref(), parameter.numel)?;
        }
        let _desk = self.enter()?;
        if !manifest.parameters.is_empty() {
            let core = self.settled_between_steps()?;
            drop(self.ensure_room_for_one(core)?);
        }
        let parameters = manifest.parameters.iter();
        let recipes = parameters.map(|parameter| recipe_of(parameter, &snapshot, &sources));
        let compare =
            |number, state: usize, found| compare(&snapshot, number, sources[state], found);
        let engine = self.file_engine()?;
        let made = self.make_versions(&engine, recipes, Some(&compare));
        snapshot.data().close_in(&engine);
        made?;
        let mut core = self.settled_between_steps()?;
        core.step_number = manifest.step;
        core.reversed = manifest.step % 2 == 1;
        core.user_data = Some(manifest.user_data.as_slice().into());
        core.user_data_is_new = true;
        self.commit_now(core).map(drop)
    }
}

/// What the record of a parameter is made of.
fn recipe_of<'a>(
    parameter: &SnapshotParameter,
    snapshot: &'a Snapshot,
    sources: &Sources,
) -> Recipe<'a> {
    let states = &snapshot.manifest().states;
    let (mut zero_states, mut origins) = (0, Vec::new());
    for (state, source) in sources.iter().enumerate() {
        match parameter.states[*source] {
            StateImage::Zero => zero_states |= 1 << state,
            StateImage::At { offset_bytes, .. } => origins.push(Origin {
                state,
                tensor: Tensor {
                    memory: MemoryRange::EMPTY,
                    numel: parameter.numel,
                    dtype: states[*source].disk_dtype,
                    flags: 0,
                    file_offset: offset_bytes,
                    user_tag: 0,
                },
                path: Some(snapshot.data_path()),
                only: snapshot.data().identity().ok(),
            }),
        }
    }
    Recipe {
        id: parameter.id,
        zero_states,
        origins,
    }
}

/// Compares the checksum of a state that was read with the one that was recorded, if one was.
fn compare(snapshot: &Snapshot, number: usize, state: usize, found: u32) -> Result<()> {
    match snapshot.manifest().parameters[number].states[state] {
        StateImage::At {
            checksum: Some(recorded),
            offset_bytes,
        } if recorded != found => {
            Err(snapshot.wrong_checksum(number, state, offset_bytes, [found, recorded]))
        }
        _ => Ok(()),
    }
}

/// Finds each state of the store among those of the snapshot.
fn sources_of(core: &Core, snapshot: &Snapshot) -> Result<Sources> {
    let (own, known) = (&core.layout.states, &snapshot.manifest().states);
    if core.states_added == 0 {
        return Err(Error::invalid("there are no states; add them first"));
    }
    let names = |states: &[crate::store::StateSpec]| -> String {
        let names: Vec<&str> = states.iter().map(|state| state.name.as_str()).collect();
        names.join(", ")
    };
    let find = |name: &str| known.iter().position(|state| state.name == name);
    let sources: Option<Sources> = own.iter().map(|state| find(&state.name)).collect();
    let sources = sources.filter(|sources| sources.len() == known.len() && sources[0] == 0);
    let sources = sources.ok_or_else(|| {
        Error::StoreMismatch(format!(
            "the snapshot has the states {}, and {} were added",
            names(known),
            names(own)
        ))
    })?;
    for (state, source) in own.iter().zip(&sources) {
        let (from, into) = (known[*source].disk_dtype, state.disk_dtype);
        if from != into && !(is_convertible(from) && is_convertible(into)) {
            return Err(Error::StoreMismatch(format!(
                "state {} is {} in the snapshot, and {} on storage was asked for",
                state.name,
                from.name(),
                into.name()
            )));
        }
    }
    Ok(sources)
}
