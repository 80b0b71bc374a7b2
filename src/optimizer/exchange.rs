//! States in files that others read and write: exported as safetensors, and masters taken from them.
//!
//! An export reads records ahead as a step does and copies each state as storage holds it: no value is
//! converted, and records that are in memory stay there.

use std::collections::{BTreeMap, HashMap};
use std::ffi::CString;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::core::Core;
use super::image::Image;
use super::initialize::Partition;
use super::optimizer_swapper::Optimizer;
use super::record::{Residency, StepPart};
use crate::base::config::Config;
use crate::base::dtype::Dtype;
use crate::base::error::{Error, IoFailure, Result};
use crate::base::sync::{MutexGuard, lock};
use crate::io::{Engine, Tensor};
use crate::memory::MemoryRange;
use crate::safetensors::{Entry, Export, Plan, Source};

/// BOUND: records that are read ahead between steps; how far that gets depends on the room there is.
const AHEAD_MAX: usize = 64;

impl Optimizer {
    /// Writes all states of the parameters that this run added as safetensors, committed or not: what
    /// [`read_state`](Optimizer::read_state) would read, in the type that the state has on storage.
    ///
    /// The master is named as its parameter, `parameter.<id>` for one without a name; `.` and the name
    /// of the state follow for the others. Every tensor has one dimension. The files' metadata tells
    /// the step. With `shard_bytes_max` other than 0, data that is longer is cut between tensors into
    /// `NAME-00001-of-00003.safetensors` and so on, and `NAME.safetensors.index.json` tells which is
    /// where. The files get their names when all are whole and on storage, in place of what had them; an
    /// export of the same name that was cut otherwise stays beside them.
    ///
    /// # Errors
    /// `Busy` in an open step or with parameters swapped in; `InvalidArgument` where two tensors would
    /// have the same name, where none of the store's parameters was added, and for a path that is no
    /// text; `Unsupported` where something else than a file or a link has one of the names; `Locked`
    /// where somebody else is writing these files; what kept a record from being read or a file from
    /// being written. No file is left then.
    pub fn export_safetensors(&self, file: &Path, shard_bytes_max: u64) -> Result<()> {
        let _desk = self.enter()?;
        let started = Instant::now();
        let mut core = self.settled_between_steps()?;
        core.check_none_out()?;
        let order: Vec<u32> = core
            .indices()
            .filter(|index| core.record(*index).attached)
            .collect();
        if order.is_empty() && !core.records.is_empty() {
            return Err(Error::invalid(
                "none of the store's parameters was added; there is nothing to export",
            ));
        }
        let entries = self.entries_of(&core, &order)?;
        let metadata = BTreeMap::from([
            ("format", "pt".to_owned()),
            ("step", core.step_number.to_string()),
            ("tensorswap", env!("CARGO_PKG_VERSION").to_owned()),
        ]);
        let name = file.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| {
            Error::invalid(format!("{} is not the name of a file", file.display()))
        })?;
        let plan = Plan::new(name, entries, &metadata, shard_bytes_max)?;
        core = self.ensure_room_for_one(core)?;
        drop(core);
        let directory = file.parent().unwrap_or(Path::new(""));
        let mut export = Export::create(self.file_engine()?, directory, plan)?;
        let copied = self.export_records(&order, &mut export);
        self.end_reading_ahead(&order);
        copied?;
        export.publish()?;
        self.shared.engine.trace_call("export", started);
        Ok(())
    }

    /// Gives master parameters their values from tensors of a safetensors file, or of the files whose
    /// index (`*.index.json`) it is, in f32, f16 or bf16 and of any shape. `names` are those of the
    /// tensors; `None` is the name that an export gives to the parameter. Else as
    /// [`initialize_parameters`](Optimizer::initialize_parameters).
    ///
    /// The data is read by the engine and not mapped into memory: past the page cache, and with an error
    /// where a mapping would end the process, should the file be cut or its drive fail.
    ///
    /// # Errors
    /// Before anything changes: `Corrupt` for a file that is none or is damaged; `Io`, with `NOT_FOUND`
    /// also for a name that no tensor has; `SizeMismatch` for another number of elements;
    /// `DtypeMismatch`; and those of `initialize_parameters`. Then: the failure of a read or write.
    pub fn initialize_from_safetensors(
        &self,
        file: &Path,
        ids: &[u64],
        names: &[Option<&str>],
    ) -> Result<()> {
        if ids.len() != names.len() {
            return Err(Error::invalid("there must be one name for each parameter"));
        }
        let _desk = self.enter()?;
        let core = self.settled_between_steps()?;
        let mut wanted = Vec::with_capacity(ids.len());
        for index in self.indices_of(&core, ids)? {
            wanted.push((core.record(index).id, core.record(index).numel, index));
        }
        drop(core);
        if ids.is_empty() {
            return Ok(());
        }
        let mut source = Source::open(file)?;
        let mut found = Vec::with_capacity(ids.len());
        for ((id, numel, index), name) in wanted.into_iter().zip(names) {
            let name = name.map_or_else(|| self.export_name(index, id), str::to_owned);
            let (path, tensor) = find_tensor(&mut source, file, &name, id, numel)?;
            found.push((id, path, tensor));
        }
        let mut pieces = Vec::with_capacity(found.len());
        for (id, path, tensor) in &found {
            pieces.push(Partition {
                parameter_id: *id,
                offset: 0,
                tensor: *tensor,
                path: Some(path),
            });
        }
        self.initialize(&pieces, &self.file_engine()?)
    }

    /// The engine for files that others are to read, or have written: with the memory backend, whose
    /// files are nobody else's, one for the purpose.
    pub(super) fn file_engine(&self) -> Result<Engine> {
        match self.shared.engine.is_in_memory() {
            true => Engine::new(&Config::new()),
            false => Ok(self.shared.engine.clone()),
        }
    }

    /// The name of a parameter in an export.
    fn export_name(&self, index: u32, id: u64) -> String {
        let stored = self.shared.store.record(index);
        match stored.and_then(|stored| stored.name) {
            Some(name) => name.into(),
            None => format!("parameter.{id}"),
        }
    }

    /// The tensors of an export, record by record.
    fn entries_of(&self, core: &Core, order: &[u32]) -> Result<Vec<Entry>> {
        let states = &core.layout.states;
        let mut entries = Vec::with_capacity(order.len() * states.len());
        for index in order {
            let record = core.record(*index);
            let name = self.export_name(*index, record.id);
            for (position, state) in states.iter().enumerate() {
                entries.push(Entry {
                    name: match position {
                        0 => name.clone(),
                        _ => format!("{name}.{}", state.name),
                    },
                    dtype: state.disk_dtype,
                    numel: record.numel,
                });
            }
        }
        let mut seen = HashMap::with_capacity(entries.len());
        for (position, entry) in entries.iter().enumerate() {
            let what = |position: usize| {
                let id = core.record(order[position / states.len()]).id;
                format!("{} of parameter {id}", states[position % states.len()].name)
            };
            if let Some(other) = seen.insert(entry.name.as_str(), position) {
                return Err(Error::invalid(format!(
                    "{} and {} would both be named {}",
                    what(other),
                    what(position),
                    entry.name
                )));
            }
            if entry.name == crate::safetensors::RESERVED_NAME {
                return Err(Error::invalid(format!(
                    "{} would be named {}, which is kept for other things",
                    what(position),
                    entry.name
                )));
            }
        }
        Ok(entries)
    }

    fn export_records(&self, order: &[u32], export: &mut Export) -> Result<()> {
        let mut ahead = 0;
        for (position, index) in order.iter().enumerate() {
            let mut core = lock(&self.shared.core);
            core.tell_failed()?;
            ahead = core.read_ahead(order, position, ahead.max(position));
            core = self.shared.pump(core);
            core = self.bring_in(core, *index)?;
            self.export_record(core, *index, export)?;
        }
        Ok(())
    }

    /// Copies the states of a record that is in memory. While it is copied it counts as out.
    fn export_record(
        &self,
        mut core: MutexGuard<'_, Core>,
        index: u32,
        export: &mut Export,
    ) -> Result<()> {
        let record = core.record(index);
        let (id, numel, verified) = (record.id, record.numel, record.verified);
        let version = record.newest();
        let memory = self.shared.memory_of(&core, index)?;
        let layout = Arc::clone(&core.layout);
        core.note_taken(index);
        drop(core);
        let image = Image {
            layout: &layout,
            numel,
            memory,
        };
        let right = match version.filter(|_| !verified) {
            Some(version) => self.verify(&image, &version, index),
            None => Ok(()),
        };
        let zeros = version.map_or(layout.all_states(), |version| version.zero_states);
        let copied = right.as_ref().map_or(Ok(()), |()| {
            (0..layout.states.len()).try_for_each(|state| {
                let is_zero = zeros & (1 << state) != 0;
                let bytes = (!is_zero).then(|| image.bytes(state)).transpose()?;
                export.push(bytes)
            })
        });
        let mut core = lock(&self.shared.core);
        core.note_looked_at(index, right.is_ok());
        drop(self.shared.pump(core));
        self.shared.changed.notify_all();
        right.map_err(|error| error.striking(&format!("parameter {id}")))?;
        copied
    }

    fn end_reading_ahead(&self, order: &[u32]) {
        let mut core = lock(&self.shared.core);
        for index in order {
            core.allow_dropping(*index);
        }
    }
}

/// The tensor that a parameter is to be made from, and the path of its file.
fn find_tensor(
    source: &mut Source,
    file: &Path,
    name: &str,
    id: u64,
    numel: u64,
) -> Result<(CString, Tensor)> {
    let failure = |path: String, errno, detail| {
        Box::new(IoFailure {
            operation: "initialize",
            path,
            offset_bytes: None,
            errno,
            detail,
        })
    };
    let Some((path, found)) = source.find(name)? else {
        let (path, detail) = (
            file.display().to_string(),
            format!("it has no tensor {name}"),
        );
        return Err(Error::Io(failure(path, libc::ENOENT, detail)));
    };
    let place = path.to_string_lossy().into_owned();
    let dtype = match found.dtype {
        Ok(dtype @ (Dtype::F32 | Dtype::F16 | Dtype::Bf16)) => dtype,
        other => {
            let name_of = |dtype: Dtype| dtype.name().to_owned();
            return Err(Error::DtypeMismatch(format!(
                "tensor {name} of {place} is {}; parameter {id} can be made from f32, f16 and bf16",
                other.map_or_else(|other| other.to_string(), name_of)
            )));
        }
    };
    if found.numel != numel {
        let detail = format!(
            "tensor {name} has {} elements, and parameter {id} has {numel}",
            found.numel
        );
        return Err(Error::SizeMismatch(failure(place, 0, detail)));
    }
    let tensor = Tensor {
        memory: MemoryRange::EMPTY,
        numel,
        dtype,
        flags: 0,
        file_offset: found.file_offset,
        user_tag: 0,
    };
    Ok((path, tensor))
}

impl Core {
    /// How many records are read ahead of the one that a caller is at.
    pub(super) fn ahead_max(&self) -> usize {
        match self.policy.pipeline_read {
            true => self.policy.read_ahead.min(AHEAD_MAX),
            false => 0,
        }
    }

    /// Starts to read what comes at and behind `position` in `order`, from `next` on, as far as there is
    /// room, and keeps it from being dropped; where to go on later.
    fn read_ahead(&mut self, order: &[u32], position: usize, mut next: usize) -> usize {
        while next < order.len() && next - position <= self.ahead_max() {
            let index = order[next];
            if self.record(index).residency == Residency::Cold && !self.start_read(index) {
                break;
            }
            // As what a step is still to give out.
            self.record_mut(index).part = StepPart::Todo;
            next += 1;
        }
        next
    }

    /// Takes back a record that was taken to be looked at; one that is not as it was written goes.
    fn note_looked_at(&mut self, index: u32, is_right: bool) {
        let record = self.record_mut(index);
        record.part = StepPart::None;
        record.residency = Residency::Warm;
        if record.dirty {
            self.queue_write(index);
            return;
        }
        record.verified |= is_right;
        self.note_clean(index);
        if !is_right {
            self.forget(index);
        }
    }

    fn allow_dropping(&mut self, index: u32) {
        let record = self.record_mut(index);
        if record.part == StepPart::Todo {
            record.part = StepPart::None;
            if self.is_droppable(index) {
                self.clean.push_back(index);
            }
        }
    }
}
