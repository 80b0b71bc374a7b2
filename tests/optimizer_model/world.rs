//! The object under test, and what the model knows of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use tempfile::TempDir;
use tensorswap::base::error::{Error, Status};
use tensorswap::io::{Engine, Ticket};
use tensorswap::optimizer::{Optimizer, ParameterView};

use crate::fuse::Mount;
use crate::support::*;
use crate::training::*;

pub(crate) const PARAMETERS_MAX: usize = 14;
/// Commits back to which a store may have fallen whose log lost a write.
pub(crate) const SAVED_MAX: usize = 24;

/// An open step.
#[derive(Default)]
pub(crate) struct Step {
    pub(crate) remaining: BTreeSet<u64>,
    pub(crate) out: BTreeMap<u64, ParameterView>,
    /// Changed and given back.
    pub(crate) changed: BTreeSet<u64>,
    /// A view was given out.
    pub(crate) has_given: bool,
    /// `step_next` has said that there is no more.
    pub(crate) has_ended: bool,
    pub(crate) is_aborted: bool,
}

/// What can be found when the store is opened again.
#[derive(Clone)]
pub(crate) struct Saved {
    pub(crate) model: Model,
    pub(crate) known: Vec<u64>,
    pub(crate) durable: BTreeSet<u64>,
    pub(crate) user_data: Vec<u8>,
}

pub(crate) struct World {
    pub(crate) random: Random,
    pub(crate) log: Vec<String>,
    pub(crate) directory: TempDir,
    pub(crate) settings: Vec<(&'static str, &'static str)>,
    pub(crate) engine: Engine,
    pub(crate) optimizer: Option<Optimizer>,
    /// What all calls so far have made of the records.
    pub(crate) now: Model,
    pub(crate) user_data: Vec<u8>,
    /// Parameters in the order of their first registration.
    pub(crate) known: Vec<u64>,
    pub(crate) attached: BTreeSet<u64>,
    pub(crate) step: Option<Step>,
    /// Views out one by one.
    pub(crate) held: BTreeMap<u64, ParameterView>,
    /// The parameter that is prefetched.
    pub(crate) ahead: Option<u64>,
    /// A `swap_out_state` since the last commit: the next one counts a step.
    pub(crate) is_swapped_out: bool,
    /// Parameters of which a version was committed, and those changed since the last commit.
    pub(crate) durable: BTreeSet<u64>,
    pub(crate) pending: BTreeSet<u64>,
    /// Those among them that storage has a further version of.
    pub(crate) rewritten: BTreeSet<u64>,
    /// The last explicit commit, and the ends of steps since.
    pub(crate) saved: Vec<Saved>,
    /// How many directories the store has.
    pub(crate) places: usize,
    /// A snapshot in the making, and what it must hold.
    pub(crate) snapshot: Option<(Ticket, PathBuf, Saved)>,
    pub(crate) snapshots_count: usize,
    /// Those among them that were restored.
    pub(crate) restored_count: usize,
    /// A call met a fault of the file system.
    pub(crate) is_in_trouble: bool,
    pub(crate) troubles: u64,
    /// DROP ORDER: after all that has files open there.
    pub(crate) mount: Option<Mount>,
}

impl World {
    pub(crate) fn new(seed: u64, backend: &'static str, mount: Option<Mount>) -> World {
        let mut random = Random(seed);
        let flag = ["true", "false"];
        let mut settings = vec![
            ("backend", backend),
            ("sync", *random.pick(&["none", "commit"])),
            ("views_max", *random.pick(&["1", "2", "3"])),
            ("cache_bytes", *random.pick(&["0", "300KiB", "1GiB"])),
            ("pipeline_read", *random.pick(&flag)),
            ("pipeline_write", *random.pick(&flag)),
            ("gradients", *random.pick(&["memory", "disk", "auto"])),
            ("checksum", *random.pick(&["off", "verify"])),
        ];
        let places = match backend {
            "memory" => 1,
            _ => *random.pick(&[1, 2, 3]),
        };
        if mount.is_some() {
            *settings.last_mut().unwrap() = ("checksum", "verify");
        }
        let types = *random.pick(&[F32, BF16_MOMENTS, F16]);
        let mut world = World {
            directory: directory(),
            engine: engine(&[("backend", backend), ("block_bytes", "64KiB")]),
            optimizer: None,
            now: Model::new(&types),
            user_data: Vec::new(),
            known: Vec::new(),
            attached: BTreeSet::new(),
            step: None,
            held: BTreeMap::new(),
            ahead: None,
            is_swapped_out: false,
            durable: BTreeSet::new(),
            pending: BTreeSet::new(),
            rewritten: BTreeSet::new(),
            saved: Vec::new(),
            log: vec![format!("{settings:?} {places} {types:?}")],
            places,
            snapshot: None,
            snapshots_count: 0,
            restored_count: 0,
            settings,
            random,
            is_in_trouble: false,
            troubles: 0,
            mount,
        };
        world.saved.push(world.save());
        world.open();
        world.switch_faults(true);
        world
    }

    /// Where the store is.
    pub(crate) fn place(&self) -> PathBuf {
        let mount = self.mount.as_ref().map(Mount::path);
        mount.unwrap_or(self.directory.path()).to_owned()
    }

    pub(crate) fn switch_faults(&mut self, on: bool) {
        if let Some(mount) = &mut self.mount {
            mount.switch(on);
        }
    }

    /// Whether transfers can be wrong without a word.
    ///
    /// KERNEL: after a short transfer of a file that FUSE serves with direct I/O, io_uring (Linux
    /// 6.18) goes on at the right place in memory and at the old one in the file, and reports that
    /// all was moved.
    pub(crate) fn is_lied_to(&self) -> bool {
        let is_short = |mount: &Mount| mount.is_short() && self.is("backend", "io_uring");
        let lies = |mount: &Mount| mount.lies() || is_short(mount);
        self.mount.as_ref().is_some_and(lies)
    }

    /// Whether a call may end so because of the file system.
    pub(crate) fn is_of_a_fault(&self, status: Status, text: &str) -> bool {
        match status {
            // The one behind our back; the call does not say why.
            Status::Busy => self.mount.is_some() && text.starts_with("a commit failed"),
            Status::Io | Status::NoSpace => self.mount.is_some(),
            _ => is_of_a_lie(status) && self.is_lied_to(),
        }
    }

    pub(crate) fn is(&self, key: &str, value: &str) -> bool {
        self.settings.contains(&(key, value))
    }

    pub(crate) fn views_max(&self) -> usize {
        let setting = self.settings.iter().find(|(key, _)| *key == "views_max");
        setting.unwrap().1.parse().unwrap()
    }

    pub(crate) fn save(&self) -> Saved {
        let mut model = self.now.clone();
        model.end_gradients();
        Saved {
            model,
            known: self.known.clone(),
            durable: self.durable.clone(),
            user_data: self.user_data.clone(),
        }
    }

    pub(crate) fn note_rewritten(&mut self, id: u64) {
        self.pending.insert(id);
        self.rewritten.insert(id);
    }

    /// A commit that nobody has to wait for has all that is done.
    pub(crate) fn note_commit(&mut self) {
        self.durable.append(&mut self.pending);
        self.rewritten.clear();
        self.saved.push(self.save());
    }

    /// After a commit that failed: what is found may be what it was to make durable.
    pub(crate) fn note_commit_in_doubt(&mut self) {
        let mut saved = self.save();
        saved.model.step += u64::from(self.is_swapped_out);
        saved.durable.extend(&self.pending);
        self.saved.push(saved);
    }

    /// What was committed before is not found any more, unless storage lies.
    pub(crate) fn forget_saved(&mut self) {
        let kept = if self.is_lied_to() { SAVED_MAX } else { 0 };
        let gone = self.saved.len().saturating_sub(kept);
        self.saved.drain(..gone);
    }

    pub(crate) fn optimizer(&self) -> &Optimizer {
        self.optimizer.as_ref().unwrap()
    }

    /// No view is out, no step is open, nothing is prefetched.
    pub(crate) fn is_idle(&self) -> bool {
        self.step.is_none() && self.held.is_empty() && self.ahead.is_none()
    }

    pub(crate) fn try_open(&self) -> Result<Optimizer, Error> {
        let directory = self.place();
        // The first one gets half as much as each of the others, where there are others.
        let places = (0..self.places).map(|place| {
            let weight = if place == 0 { 1 } else { 2 };
            format!("{}={weight}", directory.join(place.to_string()).display())
        });
        let path = places.collect::<Vec<_>>().join(",");
        let settings = [&self.settings[..], &[("path", path.as_str())]].concat();
        try_open(&self.engine, &directory, &settings, &self.now.types)
    }

    pub(crate) fn open(&mut self) {
        self.optimizer = Some(self.try_open().unwrap());
    }

    /// Checks the outcome of a call against the errors that are possible; none means success.
    pub(crate) fn settle<T>(
        &mut self,
        call: &str,
        result: Result<T, Error>,
        errors: &[Status],
    ) -> Option<T> {
        let status = result.as_ref().map_or_else(Error::status, |_| Status::Ok);
        self.log.push(format!("{call}: {status:?}"));
        let is_expected = match errors {
            [] => status == Status::Ok,
            _ => errors.contains(&status),
        };
        let text = result.as_ref().err().map(ToString::to_string);
        if !is_expected && self.is_of_a_fault(status, text.as_deref().unwrap_or_default()) {
            self.log.push(format!("    {text:?}"));
            self.is_in_trouble = true;
            return None;
        }
        assert!(is_expected, "{call}: {status:?} {text:?}, not {errors:?}");
        result.ok()
    }

    /// An id that is mostly usable, sometimes not attached or never seen.
    pub(crate) fn id(&mut self) -> u64 {
        let attached: Vec<u64> = self.attached.iter().copied().collect();
        match self.random.below(12) {
            0 => self.random.next() >> 50,
            1 if !self.known.is_empty() => *self.random.pick(&self.known),
            _ if attached.is_empty() => 77,
            _ => *self.random.pick(&attached),
        }
    }

    pub(crate) fn numel(&self, id: u64) -> usize {
        self.now.records.get(&id).map_or(10, |record| record.numel)
    }

    /// What a call about `id` meets unless it may be made now.
    pub(crate) fn errors_of(&self, id: u64) -> Vec<Status> {
        let mut errors = Vec::new();
        if !self.attached.contains(&id) {
            errors.push(Status::UnknownParameter);
        }
        if self.step.is_some() || self.held.contains_key(&id) {
            errors.push(Status::Busy);
        }
        errors
    }

    /// The same for a call that needs room for one record more than the caller's views.
    pub(crate) fn with_room(&self, mut errors: Vec<Status>) -> Vec<Status> {
        if self.held.len() == self.views_max() {
            if errors.is_empty() {
                errors.push(Status::Ok);
            }
            errors.push(Status::NoBuffers);
        }
        errors
    }

    pub(crate) fn call(&mut self) {
        if self.is_in_trouble {
            return self.recover();
        }
        // Inside a step mostly what belongs there, so that steps come to an end.
        if self.step.is_some() && !self.random.one_in(5) {
            return match self.random.below(16) {
                0..=6 => self.step_next(),
                7..=11 => self.step_done(),
                12 if self.random.one_in(4) => self.begin_snapshot(),
                12 => self.step_done(),
                13 | 14 => self.step_end(),
                _ if self.random.one_in(3) => self.step_abort(),
                _ => {}
            };
        }
        match self.random.below(64) {
            0..=4 => self.add_parameter(),
            5 => self.add_state(),
            6..=8 => self.initialize(),
            9 | 10 => self.initialize_from_swapped(),
            11..=16 => self.gradient(),
            17 | 18 => self.around_backward(),
            19 | 20 => self.gradient_norm(),
            21..=26 => self.swap_in(),
            27..=32 => self.swap_out(),
            33..=35 => self.release(),
            36..=41 => self.step_begin(),
            42 => self.step_next(),
            43 => self.step_done(),
            44 => self.step_end(),
            45 => self.step_abort(),
            46..=48 => self.commit(),
            49 => self.purge(),
            50..=52 => self.access_state(false),
            53 | 54 => self.access_state(true),
            55 | 56 => self.set_user_data(),
            57 | 58 => self.look(),
            60 | 61 => self.begin_snapshot(),
            62 => self.end_snapshot(false),
            63 => self.end_snapshot(true),
            _ => self.reopen(),
        }
    }
}

/// Whether something is found to be what nobody wrote.
pub(crate) fn is_of_a_lie(status: Status) -> bool {
    matches!(
        status,
        Status::Checksum | Status::Corrupt | Status::SizeMismatch
    )
}
