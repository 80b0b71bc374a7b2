//! Bringing back what a snapshot holds, into a new store.

use std::ffi::CStr;
use std::path::Path;

use super::core::Core;
use super::image::Image;
use super::initialize::FileReader;
use super::optimizer_swapper::Optimizer;
use crate::base::checksum::crc32c;
use crate::base::error::{Error, Result};
use crate::io::{KEEP_LENGTH, Tensor};
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
        let mut indices = Vec::new();
        let mut files = FileReader::new(&self.shared.engine);
        for (number, parameter) in manifest.parameters.iter().enumerate() {
            let zero_states = zero_states_of(parameter, &sources);
            let fill =
                |image: &Image<'_>| fill_states(image, &snapshot, number, &sources, &mut files);
            indices.push(self.make_version(parameter.id, zero_states, fill)?);
        }
        for index in indices {
            self.wait_written(index)?;
        }
        let mut core = self.settled_between_steps()?;
        core.step_number = manifest.step;
        core.reversed = manifest.step % 2 == 1;
        core.user_data = Some(manifest.user_data.as_slice().into());
        core.user_data_is_new = true;
        self.commit_now(core).map(drop)
    }
}

/// Reads all states of a parameter, at once where storage has them in the same types.
fn fill_states(
    image: &Image<'_>,
    snapshot: &Snapshot,
    number: usize,
    sources: &Sources,
    files: &mut FileReader<'_>,
) -> Result<()> {
    let path = snapshot.data_path();
    let parameter = &snapshot.manifest().parameters[number];
    let states = &snapshot.manifest().states;
    let (mut tensors, mut same) = (Vec::new(), Vec::new());
    for (state, source) in sources.iter().enumerate() {
        let StateImage::At { offset_bytes, .. } = parameter.states[*source] else {
            continue;
        };
        let (from, into) = (
            states[*source].disk_dtype,
            image.layout.states[state].disk_dtype,
        );
        let bytes = image.bytes(state)?;
        let tensor = |memory, dtype| Tensor {
            memory,
            numel: parameter.numel,
            dtype,
            flags: KEEP_LENGTH,
            file_offset: offset_bytes,
            user_tag: 0,
        };
        if from == into {
            tensors.push(tensor(bytes, from));
            same.push((bytes, *source));
        } else {
            let found = files.read(&tensor(bytes, from), path, bytes, into)?;
            compare(snapshot, number, *source, found)?;
        }
    }
    let paths: Vec<&CStr> = vec![path; tensors.len()];
    files.read_whole(&tensors, &paths)?;
    for (bytes, source) in same {
        compare(snapshot, number, source, bytes.inspect(crc32c))?;
    }
    Ok(())
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

/// A bit for each state of the store that is all zeros.
fn zero_states_of(parameter: &SnapshotParameter, sources: &Sources) -> u8 {
    let states = sources.iter().enumerate();
    states
        .filter(|(_, source)| parameter.states[**source] == StateImage::Zero)
        .fold(0, |set, (state, _)| set | 1 << state)
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
