//! Random calls, valid and invalid, against a model in plain vectors that tells the status of each
//! and all data: whatever is called in whatever order, the object answers, stays usable, and holds
//! what it should, also after it was dropped and the store opened again.
//!
//! The same on a file system that fails, dawdles and lies by a plan (`fuse/`): every value that is
//! given is right, or there is an error, and the store opens at a step that was committed.
//!
//! `TSW_TEST_SEED=N` runs one seed alone, `TSW_TEST_CALLS=N` only its first calls.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    reason = "a test"
)]

mod fuse;
mod support;
mod training;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::path::PathBuf;

use fuse::Mount;
use support::*;
use tempfile::TempDir;
use tensorswap::base::dtype::Dtype;
use tensorswap::base::error::{Error, Status};
use tensorswap::io::{Engine, Tensor, Ticket};
use tensorswap::optimizer::{NO_PARAMETER, Optimizer, ParameterView, Partition};
use training::*;

const PARAMETERS_MAX: usize = 14;
const CALLS: usize = 400;
const SEEDS: u64 = 8;
/// Seeds of each plan of faults.
const FAULT_SEEDS: u64 = 1;
/// Commits back to which a store may have fallen whose log lost a write.
const SAVED_MAX: usize = 24;

/// An open step.
#[derive(Default)]
struct Step {
    remaining: BTreeSet<u64>,
    out: BTreeMap<u64, ParameterView>,
    /// Changed and given back.
    changed: BTreeSet<u64>,
    /// A view was given out.
    has_given: bool,
    /// `step_next` has said that there is no more.
    has_ended: bool,
    is_aborted: bool,
}

/// What can be found when the store is opened again.
#[derive(Clone)]
struct Saved {
    model: Model,
    known: Vec<u64>,
    durable: BTreeSet<u64>,
    user_data: Vec<u8>,
}

struct World {
    random: Random,
    log: Vec<String>,
    directory: TempDir,
    settings: Vec<(&'static str, &'static str)>,
    engine: Engine,
    optimizer: Option<Optimizer>,
    /// What all calls so far have made of the records.
    now: Model,
    user_data: Vec<u8>,
    /// Parameters in the order of their first registration.
    known: Vec<u64>,
    attached: BTreeSet<u64>,
    step: Option<Step>,
    /// Views out one by one.
    held: BTreeMap<u64, ParameterView>,
    /// The parameter that is prefetched.
    ahead: Option<u64>,
    /// A `swap_out_state` since the last commit: the next one counts a step.
    is_swapped_out: bool,
    /// Parameters of which a version was committed, and those changed since the last commit.
    durable: BTreeSet<u64>,
    pending: BTreeSet<u64>,
    /// Those among them that storage has a further version of.
    rewritten: BTreeSet<u64>,
    /// The last explicit commit, and the ends of steps since.
    saved: Vec<Saved>,
    /// How many directories the store has.
    places: usize,
    /// A snapshot in the making, and what it must hold.
    snapshot: Option<(Ticket, PathBuf, Saved)>,
    snapshots_count: usize,
    /// A call met a fault of the file system.
    is_in_trouble: bool,
    troubles: u64,
    /// DROP ORDER: after all that has files open there.
    mount: Option<Mount>,
}

impl World {
    fn new(seed: u64, backend: &'static str, mount: Option<Mount>) -> World {
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
    fn place(&self) -> PathBuf {
        let mount = self.mount.as_ref().map(Mount::path);
        mount.unwrap_or(self.directory.path()).to_owned()
    }

    fn switch_faults(&mut self, on: bool) {
        if let Some(mount) = &mut self.mount {
            mount.switch(on);
        }
    }

    /// Whether transfers can be wrong without a word.
    ///
    /// KERNEL: after a short transfer of a file that FUSE serves with direct I/O, io_uring (Linux
    /// 6.18) goes on at the right place in memory and at the old one in the file, and reports that
    /// all was moved.
    fn is_lied_to(&self) -> bool {
        let is_short = |mount: &Mount| mount.is_short() && self.is("backend", "io_uring");
        let lies = |mount: &Mount| mount.lies() || is_short(mount);
        self.mount.as_ref().is_some_and(lies)
    }

    /// Whether a call may end so because of the file system.
    fn is_of_a_fault(&self, status: Status, text: &str) -> bool {
        match status {
            // The one behind our back; the call does not say why.
            Status::Busy => self.mount.is_some() && text.starts_with("a commit failed"),
            Status::Io | Status::NoSpace => self.mount.is_some(),
            Status::Checksum | Status::Corrupt | Status::SizeMismatch => self.is_lied_to(),
            _ => false,
        }
    }

    fn is(&self, key: &str, value: &str) -> bool {
        self.settings.contains(&(key, value))
    }

    fn views_max(&self) -> usize {
        let setting = self.settings.iter().find(|(key, _)| *key == "views_max");
        setting.unwrap().1.parse().unwrap()
    }

    fn save(&self) -> Saved {
        let mut model = self.now.clone();
        model.end_gradients();
        Saved {
            model,
            known: self.known.clone(),
            durable: self.durable.clone(),
            user_data: self.user_data.clone(),
        }
    }

    fn note_rewritten(&mut self, id: u64) {
        self.pending.insert(id);
        self.rewritten.insert(id);
    }

    /// A commit that nobody has to wait for has all that is done.
    fn note_commit(&mut self) {
        self.durable.append(&mut self.pending);
        self.rewritten.clear();
        self.saved.push(self.save());
    }

    /// After a commit that failed: what is found may be what it was to make durable.
    fn note_commit_in_doubt(&mut self) {
        let mut saved = self.save();
        saved.model.step += u64::from(self.is_swapped_out);
        saved.durable.extend(&self.pending);
        self.saved.push(saved);
    }

    /// What was committed before is not found any more, unless storage lies.
    fn forget_saved(&mut self) {
        let kept = if self.is_lied_to() { SAVED_MAX } else { 0 };
        let gone = self.saved.len().saturating_sub(kept);
        self.saved.drain(..gone);
    }

    fn optimizer(&self) -> &Optimizer {
        self.optimizer.as_ref().unwrap()
    }

    /// No view is out, no step is open, nothing is prefetched.
    fn is_idle(&self) -> bool {
        self.step.is_none() && self.held.is_empty() && self.ahead.is_none()
    }

    fn try_open(&self) -> Result<Optimizer, Error> {
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

    fn open(&mut self) {
        self.optimizer = Some(self.try_open().unwrap());
    }

    /// Checks the outcome of a call against the errors that are possible; none means success.
    fn settle<T>(&mut self, call: &str, result: Result<T, Error>, errors: &[Status]) -> Option<T> {
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
    fn id(&mut self) -> u64 {
        let attached: Vec<u64> = self.attached.iter().copied().collect();
        match self.random.below(12) {
            0 => self.random.next() >> 50,
            1 if !self.known.is_empty() => *self.random.pick(&self.known),
            _ if attached.is_empty() => 77,
            _ => *self.random.pick(&attached),
        }
    }

    fn numel(&self, id: u64) -> usize {
        self.now.records.get(&id).map_or(10, |record| record.numel)
    }

    /// What a call about `id` meets unless it may be made now.
    fn errors_of(&self, id: u64) -> Vec<Status> {
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
    fn with_room(&self, mut errors: Vec<Status>) -> Vec<Status> {
        if self.held.len() == self.views_max() {
            if errors.is_empty() {
                errors.push(Status::Ok);
            }
            errors.push(Status::NoBuffers);
        }
        errors
    }

    fn add_parameter(&mut self) {
        if !self.is_idle() {
            return;
        }
        let id = match self.random.below(8) {
            0 => NO_PARAMETER,
            1 | 2 if !self.known.is_empty() => *self.random.pick(&self.known),
            _ => self.random.next() >> 50,
        };
        let is_known = self.known.contains(&id);
        if !is_known && self.known.len() == PARAMETERS_MAX {
            return;
        }
        let longest = *self.random.pick(&[3, 2000, 30_000]);
        let numel = match self.random.below(10) {
            0 => 0,
            1 => 1 + self.random.below(longest),
            _ if is_known => self.numel(id),
            _ => 1 + self.random.below(longest),
        };
        let mut errors = Vec::new();
        if numel == 0 || id == NO_PARAMETER || self.attached.contains(&id) {
            errors.push(Status::InvalidArgument);
        }
        if is_known && numel != self.numel(id) {
            errors.push(Status::SizeMismatch);
        }
        let name = format!("p{id}");
        let result = self
            .optimizer()
            .add_parameter(id, Some(&name), numel as u64);
        if self
            .settle(&format!("add_parameter {id}"), result, &errors)
            .is_some()
        {
            self.attached.insert(id);
        }
        // After a fault it may be registered, or not.
        if (self.attached.contains(&id) || self.is_in_trouble) && !is_known {
            self.known.push(id);
            self.now.add(id, numel);
        }
    }

    fn add_state(&mut self) {
        if self.attached.is_empty() {
            return;
        }
        let result = self.optimizer().add_state("late", Dtype::F32, Dtype::F32);
        self.settle("add_state", result, &[Status::InvalidArgument]);
    }

    fn initialize(&mut self) {
        let mut ids: Vec<u64> = (0..1 + self.random.below(3)).map(|_| self.id()).collect();
        let mut errors: Vec<Status> = ids.iter().flat_map(|id| self.errors_of(*id)).collect();
        if self.random.one_in(8) {
            ids.push(ids[0]);
        }
        if ids.iter().collect::<BTreeSet<_>>().len() < ids.len() {
            errors.push(Status::InvalidArgument);
        }
        let dtype = self.now.types[0].1;
        let is_short = self.random.one_in(10);
        let mut memory: Vec<Vec<u8>> = Vec::new();
        for id in &ids {
            let numel = self.numel(*id) - usize::from(is_short);
            memory.push(to_bytes(&values(numel, self.random.next()), dtype));
        }
        if is_short {
            errors.extend([Status::InvalidArgument, Status::SizeMismatch]);
        }
        let errors = self.with_room(errors);
        let sources: Vec<Tensor> = memory.iter_mut().map(|m| elements(m, dtype)).collect();
        let result = self.optimizer().initialize_parameters(&ids, &sources);
        if self
            .settle(&format!("initialize {ids:?}"), result, &errors)
            .is_some()
        {
            for (id, bytes) in ids.iter().zip(&memory) {
                self.set_fresh(*id, &from_bytes(bytes, dtype));
            }
        }
    }

    /// A master from outside: the moments begin anew.
    fn set_fresh(&mut self, id: u64, master: &[f32]) {
        self.note_rewritten(id);
        let zeros = vec![0.0; master.len()];
        self.now.set(id, 0, master);
        for state in 1..self.now.types.len() {
            self.now.set(id, state, &zeros);
        }
    }

    /// Pieces in memory and in a raw file, which cover a parameter, or do not.
    fn initialize_from_swapped(&mut self) {
        let id = self.id();
        let mut errors = self.errors_of(id);
        let numel = self.numel(id);
        let cut = self.random.below(numel + 1);
        let gap = usize::from(self.random.one_in(8) && cut > 0);
        if gap > 0 {
            errors.push(Status::InvalidArgument);
        }
        let master = rounded(&values(numel, self.random.next()), Dtype::F16);
        let mut head = to_bytes(&master[..cut - gap], Dtype::F16);
        let mut tail = to_bytes(&master[cut..], Dtype::F16);
        let file = path(self.directory.path(), "partition");
        let at = *self.random.pick(&[0, 2, 513, 4096]);
        let content = [vec![0xEE; at], tail.clone()].concat();
        std::fs::write(self.directory.path().join("partition"), content).unwrap();
        let is_stored = !self.is("backend", "memory");
        if is_stored {
            tail.fill(0);
        }
        let piece = |offset: usize, tensor: Tensor, path| Partition {
            parameter_id: id,
            offset: offset as u64,
            tensor,
            path,
        };
        let stored: Option<&CString> = is_stored.then_some(&file);
        let tail = elements(&mut tail, Dtype::F16).at(at as u64).unwrap();
        let mut pieces = vec![
            piece(0, elements(&mut head, Dtype::F16), None),
            piece(cut, tail, stored.map(CString::as_c_str)),
        ];
        pieces.retain(|piece| piece.tensor.len_bytes() > 0);
        if pieces.is_empty() {
            return;
        }
        if self.random.one_in(2) {
            pieces.reverse();
        }
        let errors = self.with_room(errors);
        let result = self.optimizer().initialize_from_swapped(&pieces);
        if self
            .settle("initialize_from_swapped", result, &errors)
            .is_some()
        {
            self.set_fresh(id, &master);
        }
    }

    fn gradient(&mut self) {
        let id = self.id();
        if !self.is_idle() {
            return;
        }
        let mut errors = self.errors_of(id);
        let numel = self.numel(id);
        let dtype = self.now.types[0].1;
        let offset = self.random.below(numel);
        let len = 1 + self.random.below(numel - offset);
        let beyond = usize::from(self.random.one_in(12)) * (numel - offset - len + 1);
        if beyond > 0 {
            errors.push(Status::InvalidArgument);
        }
        let slope = rounded(&values(len + beyond, self.random.next()), dtype);
        let mut bytes = to_bytes(&slope, dtype);
        let tensor = elements(&mut bytes, dtype);
        let result = self
            .optimizer()
            .swap_out_gradients(id, &[offset as u64], &[tensor]);
        if self
            .settle(&format!("swap_out_gradients {id}"), result, &errors)
            .is_some()
        {
            self.now.add_gradient(id, offset, &slope, false);
        }
    }

    fn around_backward(&mut self) {
        if !self.is_idle() {
            return;
        }
        let (name, result) = match self.random.below(4) {
            0 => ("pre_backward", self.optimizer().pre_backward()),
            1 => ("post_backward", self.optimizer().post_backward()),
            2 => ("flush_gradients", self.optimizer().flush_gradients()),
            _ => ("discard_gradients", self.optimizer().discard_gradients()),
        };
        self.settle(name, result, &[]);
        if name == "discard_gradients" {
            self.now.end_gradients();
        }
    }

    fn gradient_norm(&mut self) {
        let id = self.id();
        if !self.is_idle() {
            return;
        }
        let errors = self.errors_of(id);
        let result = self.optimizer().gradient_norm(id);
        if let Some(norm) = self.settle(&format!("gradient_norm {id}"), result, &errors) {
            let gradient = self.now.records[&id].gradient.iter().flatten();
            let expected: f64 = gradient.map(|value| f64::from(*value).powi(2)).sum();
            let difference = (norm.sum_of_squares - expected).abs();
            assert!(difference <= 1e-9 * expected, "{norm:?} {expected}");
            assert_eq!(norm.nonfinite_count, 0);
        }
    }

    /// A view shows the record as it is, and its gradient.
    fn check_view(&self, view: &ParameterView) {
        let record = &self.now.records[&view.id];
        assert_eq!(view.numel, record.numel as u64);
        for (state, found) in view.states().enumerate() {
            assert!(load(found) == record.states[state], "{} {state}", view.id);
        }
        let gradient = view.gradient().map(load);
        assert!(gradient == record.gradient, "gradient of {}", view.id);
    }

    fn swap_in(&mut self) {
        let id = match self.ahead {
            Some(ahead) if !self.random.one_in(4) => ahead,
            _ => self.id(),
        };
        let next = self.random.one_in(2).then(|| self.id());
        let next = next.filter(|next| *next != id && !self.held.contains_key(next));
        let mut errors = Vec::new();
        if [Some(id), next]
            .iter()
            .flatten()
            .any(|id| !self.attached.contains(id))
        {
            errors.push(Status::UnknownParameter);
        }
        if self.step.is_some() || self.held.contains_key(&id) {
            errors.push(Status::Busy);
        }
        if self.ahead.is_some_and(|ahead| ahead != id) {
            errors.push(Status::Busy);
        }
        if self.held.len() == self.views_max() {
            errors.push(Status::NoBuffers);
        }
        let result = self.optimizer().swap_in_state(id, next);
        if let Some(view) = self.settle(&format!("swap_in_state {id}"), result, &errors) {
            self.check_view(&view);
            self.held.insert(id, view);
            // Where nothing is read ahead the next one is not remembered.
            self.ahead = next.filter(|_| self.is("pipeline_read", "true"));
        }
    }

    fn swap_out(&mut self) {
        let held: Vec<u64> = self.held.keys().copied().collect();
        let id = if held.is_empty() || self.random.one_in(6) {
            self.id()
        } else {
            *self.random.pick(&held)
        };
        let errors = match (self.attached.contains(&id), self.held.get(&id)) {
            (false, _) => vec![Status::UnknownParameter],
            (true, None) => vec![Status::Busy],
            (true, Some(view)) => {
                update(view, self.now.step + 1);
                vec![]
            }
        };
        let asynchronous = self.random.one_in(2);
        let result = self.optimizer().swap_out_state(id, asynchronous);
        if self
            .settle(&format!("swap_out_state {id}"), result, &errors)
            .is_some()
        {
            self.held.remove(&id);
            self.note_rewritten(id);
            self.now.update(id);
            self.now.records.get_mut(&id).unwrap().gradient = None;
            self.is_swapped_out = true;
        }
    }

    fn release(&mut self) {
        let mut taken: Vec<u64> = self.held.keys().copied().collect();
        taken.extend(self.ahead);
        let id = if taken.is_empty() || self.random.one_in(6) {
            self.id()
        } else {
            *self.random.pick(&taken)
        };
        let errors = match (self.attached.contains(&id), taken.contains(&id)) {
            (false, _) => vec![Status::UnknownParameter],
            (true, false) => vec![Status::Busy],
            (true, true) => vec![],
        };
        let result = self.optimizer().release_state(id);
        if self
            .settle(&format!("release_state {id}"), result, &errors)
            .is_some()
            && self.held.remove(&id).is_none()
        {
            self.ahead = None;
        }
    }

    fn step_begin(&mut self) {
        if self.is_swapped_out || self.ahead.is_some() {
            return;
        }
        let ids: Option<Vec<u64>> = self
            .random
            .one_in(2)
            .then(|| (0..1 + self.random.below(6)).map(|_| self.id()).collect());
        let asked: BTreeSet<u64> = match &ids {
            Some(ids) => ids.iter().copied().collect(),
            None => self.attached.clone(),
        };
        let mut errors = Vec::new();
        if ids.as_ref().is_some_and(|ids| asked.len() < ids.len()) {
            errors.push(Status::InvalidArgument);
        }
        if !asked.is_subset(&self.attached) {
            errors.push(Status::UnknownParameter);
        }
        if self.step.is_some() || !self.held.is_empty() {
            errors.push(Status::Busy);
        }
        let result = self.optimizer().step_begin(ids.as_deref());
        if self
            .settle(&format!("step_begin {ids:?}"), result, &errors)
            .is_some()
        {
            // What has two versions already would leave no place for a third one.
            if self.is("sync", "commit") && !self.rewritten.is_disjoint(&self.durable) {
                self.forget_saved();
                self.note_commit();
            }
            self.step = Some(Step {
                remaining: asked,
                ..Step::default()
            });
        } else if self.is_in_trouble {
            self.note_commit_in_doubt();
        }
    }

    fn step_next(&mut self) {
        let views_max = self.views_max();
        let errors: &[Status] = match &self.step {
            None => &[Status::Busy],
            Some(step) if step.is_aborted => &[Status::Cancelled],
            Some(step) if step.out.len() == views_max && step.remaining.is_empty() => {
                &[Status::NoBuffers, Status::Ok]
            }
            Some(step) if step.out.len() == views_max => &[Status::NoBuffers],
            Some(_) => &[],
        };
        let result = self.optimizer().step_next().map_err(|failed| failed.error);
        let Some(given) = self.settle("step_next", result, errors) else {
            return;
        };
        if let Some(view) = &given {
            self.check_view(view);
        }
        let step = self.step.as_mut().unwrap();
        match given {
            Some(view) => {
                assert!(step.remaining.remove(&view.id), "{} twice", view.id);
                step.out.insert(view.id, view);
                step.has_given = true;
            }
            None => {
                assert!(step.remaining.is_empty(), "left: {:?}", step.remaining);
                step.has_ended = true;
            }
        }
    }

    fn step_done(&mut self) {
        let out: Vec<u64> = self
            .step
            .iter()
            .flat_map(|step| step.out.keys())
            .copied()
            .collect();
        let id = if out.is_empty() || self.random.one_in(6) {
            self.id()
        } else {
            *self.random.pick(&out)
        };
        let is_out = out.contains(&id);
        let changed = is_out && !self.random.one_in(4);
        let errors: &[Status] = match (self.attached.contains(&id), is_out) {
            (false, _) => &[Status::UnknownParameter, Status::Busy],
            (true, false) => &[Status::Busy],
            (true, true) => &[],
        };
        if changed {
            let step = self.step.as_ref().unwrap();
            update(&step.out[&id], self.now.step + 1);
        }
        let result = self.optimizer().step_done(id, changed);
        if self
            .settle(&format!("step_done {id}"), result, errors)
            .is_some()
        {
            let step = self.step.as_mut().unwrap();
            step.out.remove(&id);
            if changed && !step.is_aborted {
                step.changed.insert(id);
            }
        }
    }

    fn step_end(&mut self) {
        let can_end = self.step.as_ref().is_some_and(|step| {
            step.has_ended && step.remaining.is_empty() && step.out.is_empty() && !step.is_aborted
        });
        let errors: &[Status] = if can_end { &[] } else { &[Status::Busy] };
        let result = self.optimizer().step_end();
        if self.settle("step_end", result, errors).is_none() {
            return;
        }
        let step = self.step.take().unwrap();
        for id in &step.changed {
            self.now.update(*id);
        }
        self.now.step += 1;
        self.now.end_gradients();
        self.pending.extend(&step.changed);
        if self.is("sync", "commit") {
            self.note_commit();
        }
    }

    fn step_abort(&mut self) {
        let mut errors = Vec::new();
        let mut may_be_written = false;
        match &self.step {
            None => errors.push(Status::Busy),
            Some(step) => {
                // What is given out may be the only copy there is.
                may_be_written = self.is("sync", "none") && step.has_given;
                if !step.out.is_empty() {
                    errors.push(Status::Busy);
                }
            }
        }
        if may_be_written && !self.step.as_ref().is_some_and(|step| step.is_aborted) {
            errors.push(Status::Unsupported);
            if errors.len() == 1 {
                errors.push(Status::Ok);
            }
        }
        let result = self.optimizer().step_abort();
        let status = result.as_ref().map_or_else(Error::status, |()| Status::Ok);
        self.settle("step_abort", result, &errors);
        match (status, &mut self.step) {
            (Status::Ok, step) => {
                *step = None;
                self.now.end_gradients();
            }
            (Status::Busy, Some(step)) => step.is_aborted = true,
            _ => {}
        }
    }

    fn commit(&mut self) {
        if self.ahead.is_some() {
            return;
        }
        let errors: &[Status] = if self.is_idle() { &[] } else { &[Status::Busy] };
        let result = self.optimizer().commit();
        if self.settle("commit", result, errors).is_some() {
            self.now.step += u64::from(self.is_swapped_out);
            self.is_swapped_out = false;
            self.forget_saved();
            self.note_commit();
        } else if self.is_in_trouble {
            self.note_commit_in_doubt();
        }
    }

    fn purge(&mut self) {
        if self.ahead.is_some() || self.attached.len() < self.known.len() {
            return;
        }
        let errors: &[Status] = if self.is_idle() { &[] } else { &[Status::Busy] };
        let result = self.optimizer().purge_state();
        if self.settle("purge_state", result, errors).is_some() {
            let pending = &self.pending | &self.durable;
            let rewritten = self.rewritten.clone();
            for id in self.known.clone() {
                let master = self.now.records[&id].states[0].clone();
                self.set_fresh(id, &master);
            }
            // What was zero all over has not changed, and zeros are not written.
            self.pending = pending;
            self.rewritten = rewritten;
        }
    }

    /// Reads or writes a state whole, by its right name and type or a wrong one.
    fn access_state(&mut self, writes: bool) {
        let id = self.id();
        if self.step.is_some() || self.ahead.is_some() {
            return;
        }
        let mut errors = self.errors_of(id);
        let state = self.random.below(3);
        let (mut name, mut dtype, _) = self.now.types[state];
        let mut numel = self.numel(id);
        match self.random.below(12) {
            0 => {
                name = "no such state";
                errors.push(Status::InvalidArgument);
            }
            1 => {
                dtype = Dtype::I32;
                errors.push(Status::DtypeMismatch);
            }
            2 => {
                numel += 1;
                errors.extend([Status::InvalidArgument, Status::SizeMismatch]);
            }
            _ => {}
        }
        let errors = self.with_room(errors);
        // No square of a gradient is negative.
        let fresh: Vec<f32> = values(numel, self.random.next())
            .iter()
            .map(|value| value.abs())
            .collect();
        let mut bytes = match dtype {
            Dtype::I32 => vec![0; 4 * numel],
            _ => to_bytes(&fresh, dtype),
        };
        let tensor = elements(&mut bytes, dtype);
        if writes {
            let result = self.optimizer().write_state(id, name, &tensor);
            if self
                .settle(&format!("write_state {id} {name}"), result, &errors)
                .is_some()
            {
                self.note_rewritten(id);
                self.now.set(id, state, &fresh);
            }
        } else {
            let result = self.optimizer().read_state(id, name, &tensor);
            if self
                .settle(&format!("read_state {id} {name}"), result, &errors)
                .is_some()
            {
                let found = from_bytes(&bytes, dtype);
                assert!(found == self.now.records[&id].states[state], "{id} {name}");
            }
        }
    }

    /// Has a snapshot made of the last commit.
    fn begin_snapshot(&mut self) {
        if self.mount.is_some() {
            return;
        }
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
        let directory = self.directory.path().join(name);
        let result = self.optimizer().snapshot(&directory);
        if let Some(ticket) = self.settle("snapshot", result, &errors) {
            // One that was to be refused for another one may come after the end of that.
            self.end_snapshot(false);
            self.snapshots_count += 1;
            self.snapshot = Some((ticket, directory, saved));
        }
    }

    /// Waits for the snapshot, and restores it into a store of other directories and other types.
    fn end_snapshot(&mut self, is_cancelled: bool) {
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
        if self.settle("snapshot's end", ended, errors).is_none() {
            assert!(!directory.exists(), "a half-made snapshot");
            return;
        }
        let store = tempfile::tempdir_in(self.directory.path()).unwrap();
        let mut expected = saved.model;
        for types in [expected.types.clone(), F32.to_vec()] {
            let engine = engine(&[("backend", "threads")]);
            let settings = [("store", "new"), ("views_max", "1")];
            let restored = try_open(&engine, store.path(), &settings, &types).unwrap();
            restored.restore(&directory).unwrap();
            assert_eq!(restored.step_number(), expected.step);
            assert_eq!(restored.user_data(), saved.user_data);
            assert!(restored.parameters_len() >= saved.known.len());
            expected.types = types;
            for id in &saved.known {
                for (state, values) in expected.records[id].states.iter().enumerate() {
                    let found = read_state(&restored, &expected, *id, state).unwrap();
                    assert!(found == *values, "{id} {state} of {}", directory.display());
                }
            }
        }
    }

    fn set_user_data(&mut self) {
        let len = *self.random.pick(&[0, 10, 5000, (1 << 20) + 1]);
        if self.step.is_some() {
            return;
        }
        let errors: &[Status] = if len > 1 << 20 {
            &[Status::InvalidArgument]
        } else {
            &[]
        };
        let data = self.random.bytes(len);
        let result = self.optimizer().set_user_data(&data);
        if self.settle("set_user_data", result, errors).is_some() {
            self.user_data = data;
        }
    }

    /// Getters, and every value where nothing is out.
    fn look(&mut self) {
        let optimizer = self.optimizer();
        if self.mount.is_some() && optimizer.step_number() < self.now.step {
            // The commit of a step failed, and all went back to the one before.
            self.is_in_trouble = true;
            return;
        }
        assert_eq!(optimizer.step_number(), self.now.step);
        assert_eq!(optimizer.user_data(), self.user_data);
        assert_eq!(optimizer.parameters_len(), self.known.len());
        for (index, id) in self.known.iter().enumerate() {
            let expected = Some((*id, self.numel(*id) as u64));
            assert_eq!(optimizer.parameter_at(index), expected);
        }
        assert_eq!(optimizer.parameter_at(self.known.len()), None);
        let stats = optimizer.stats();
        assert!(
            stats.pinned_peak_bytes <= stats.pinned_computed_bytes,
            "{stats:?}"
        );
        if self.is_idle() {
            for id in self.attached.clone() {
                for state in 0..self.now.types.len() {
                    let found = read_state(self.optimizer(), &self.now, id, state);
                    let Some(found) = self.settle("look", found, &[]) else {
                        return;
                    };
                    assert!(found == self.now.records[&id].states[state], "{id} {state}");
                }
            }
        }
    }

    /// Drops everything that was not committed, and opens the store again.
    fn reopen(&mut self) {
        if self.is("backend", "memory") {
            return;
        }
        if self.mount.is_some() {
            return self.recover();
        }
        let durable = self.close();
        self.open();
        let step = self.optimizer().step_number();
        assert!(step >= durable, "{step} < {durable}");
        let saved = self.saved.iter().find(|saved| saved.model.step == step);
        let Some(saved) = saved.cloned() else {
            panic!("opened at {step}, which was never committed");
        };
        self.log.push(format!("reopened at {step}"));
        self.go_back_to(saved);
        let leaves_some = self.random.one_in(4);
        for id in self.known.clone() {
            if !(leaves_some && self.random.one_in(3)) {
                self.attach(id);
            }
        }
        self.look();
    }

    /// Drops the object and all that is known of what was not committed; tells the last step that
    /// was durable.
    fn close(&mut self) -> u64 {
        let durable = self.optimizer().stats().durable_step;
        self.optimizer = None;
        // It was told to stop with the optimizer.
        self.end_snapshot(true);
        self.step = None;
        self.held.clear();
        self.ahead = None;
        self.is_swapped_out = false;
        self.attached.clear();
        self.pending.clear();
        self.rewritten.clear();
        durable
    }

    /// Takes on what was saved, and what was registered since and is found all the same.
    fn go_back_to(&mut self, saved: Saved) {
        let later = &self.known[saved.known.len()..];
        let numels: Vec<usize> = later.iter().map(|id| self.numel(*id)).collect();
        self.now = saved.model.clone();
        let found = self.optimizer().parameters_len();
        // A commit in the background takes along what is registered until it is done.
        assert!((saved.known.len()..=self.known.len()).contains(&found));
        for (id, numel) in self.known[saved.known.len()..found].iter().zip(numels) {
            self.now.add(*id, numel);
        }
        self.known.truncate(found);
        self.user_data.clone_from(&saved.user_data);
        self.durable.clone_from(&saved.durable);
        self.saved = vec![saved];
    }

    fn attach(&mut self, id: u64) {
        let (numel, name) = (self.numel(id) as u64, format!("p{id}"));
        let added = self.optimizer().add_parameter(id, Some(&name), numel);
        added.unwrap();
        self.attached.insert(id);
    }

    /// After faults: the store opens at a step that was committed, and every value that it gives is
    /// of that step. What storage lost without a word is an error, and can be initialized anew.
    fn recover(&mut self) {
        self.troubles += u64::from(std::mem::take(&mut self.is_in_trouble));
        let durable = self.close();
        if self.random.one_in(2)
            && let Err(error) = self.try_open()
        {
            assert!(self.is_of_a_fault(error.status(), ""), "{error}");
        }
        self.switch_faults(false);
        match self.try_open() {
            Ok(optimizer) => self.optimizer = Some(optimizer),
            Err(error) => {
                let is_lost = self.is_lied_to() && error.status() == Status::Corrupt;
                assert!(is_lost, "{error}");
                self.log.push(format!("lost: {error}"));
                return self.begin_anew();
            }
        }
        let step = self.optimizer().step_number();
        assert!(step >= durable || self.is_lied_to(), "{step} < {durable}");
        let found = self.optimizer().parameters_len();
        let recorded = self.known[..found].to_vec();
        for id in recorded {
            self.attach(id);
        }
        let mut values = BTreeMap::new();
        for id in self.attached.clone() {
            for state in 0..self.now.types.len() {
                match read_state(self.optimizer(), &self.now, id, state) {
                    Ok(value) => _ = values.insert((id, state), Some(value)),
                    Err(error) => {
                        assert!(self.is_lied_to(), "{error}");
                        assert_eq!(error.status(), Status::Checksum, "{error}");
                        values.insert((id, state), None);
                    }
                }
            }
        }
        let user_data = self.optimizer().user_data();
        let is_it = |saved: &&Saved| {
            let is_equal = |((id, state), value): (&(u64, usize), &Option<Vec<f32>>)| {
                let record = saved.model.records.get(id);
                value.as_ref().is_none_or(|value| match record {
                    Some(record) => *value == record.states[*state],
                    None => value.iter().all(|value| *value == 0.0),
                })
            };
            saved.model.step == step
                && saved.user_data == user_data
                && saved.known.len() <= found
                && values.iter().all(is_equal)
        };
        let saved = self.saved.iter().rev().find(is_it).cloned();
        let Some(saved) = saved else {
            panic!("opened at {step} with what was never committed");
        };
        self.log.push(format!("reopened at {step} after faults"));
        self.go_back_to(saved);
        let is_bad = |((id, _), value): (_, Option<_>)| value.is_none().then_some(id);
        let bad: BTreeSet<u64> = values.into_iter().filter_map(is_bad).collect();
        for id in bad {
            let dtype = self.now.types[0].1;
            let fresh = rounded(&values_of(self.numel(id), &mut self.random), dtype);
            let mut bytes = to_bytes(&fresh, dtype);
            let source = elements(&mut bytes, dtype);
            let repaired = self.optimizer().initialize_parameters(&[id], &[source]);
            assert!(repaired.is_ok(), "{repaired:?}");
            self.set_fresh(id, &fresh);
        }
        self.look();
        assert!(!self.is_in_trouble);
        self.switch_faults(true);
    }

    /// A store whose log is damaged is made anew.
    fn begin_anew(&mut self) {
        for place in 0..self.places {
            let place = self.place().join(place.to_string());
            std::fs::remove_dir_all(place.join("rank0")).unwrap();
        }
        self.known.clear();
        self.durable.clear();
        self.user_data.clear();
        self.now = Model::new(&self.now.types);
        self.saved = vec![self.save()];
        self.open();
        self.switch_faults(true);
    }

    fn call(&mut self) {
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

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn values_of(numel: usize, random: &mut Random) -> Vec<f32> {
    values(numel, random.next())
}

/// What struck, and how often a call was met by it.
#[derive(Default)]
struct Outcome {
    struck: BTreeMap<String, u64>,
    troubles: u64,
}

fn run(seed: u64, backend: &'static str, mount: Option<Mount>) -> Outcome {
    let mut world = World::new(seed, backend, mount);
    let calls = number("TSW_TEST_CALLS").map_or(CALLS, |calls| calls as usize);
    let what = format!("{backend}: seed {seed}");
    trial(
        &what,
        &mut world,
        |world| &world.log,
        |world| {
            (0..calls).for_each(|_| world.call());
            world.reopen();
        },
    );
    let struck = world.mount.as_mut().map_or_else(Vec::new, Mount::struck);
    Outcome {
        struck: struck.into_iter().collect(),
        troubles: world.troubles,
    }
}

fn seeds(count: u64) -> Vec<u64> {
    match number("TSW_TEST_SEED") {
        Some(seed) => vec![seed],
        None => (0..count).collect(),
    }
}

fn sweep(backend: &'static str) {
    for seed in seeds(SEEDS * scale()) {
        run(seed, backend, None);
    }
}

/// The same on a file system with this plan, with these backends in turn.
fn sweep_with(plan: &str, backends: &[&'static str]) -> Outcome {
    let plan = std::env::var("TSW_TEST_PLAN").unwrap_or(plan.to_owned());
    let mut all = Outcome::default();
    for seed in seeds(FAULT_SEEDS * scale()) {
        let Some(mount) = Mount::new(seed, &plan) else {
            break;
        };
        let backend = backends[seed as usize % backends.len()];
        let outcome = run(seed, backend, Some(mount));
        all.troubles += outcome.troubles;
        for (fault, count) in outcome.struck {
            *all.struck.entry(fault).or_default() += count;
        }
    }
    println!("{plan}: {:?}, {} calls failed", all.struck, all.troubles);
    all
}

const BACKENDS: [&str; 2] = ["io_uring", "threads"];

#[test]
fn short_and_slow_transfers_are_no_failures() {
    let outcome = sweep_with(
        "* read 200 short, * write 200 short, * read 100 delay, * write 100 delay, * sync 100 delay",
        &["threads"],
    );
    assert_eq!(outcome.troubles, 0);
}

#[test]
fn short_transfers_that_a_ring_continues_wrongly_are_errors_and_never_values() {
    sweep_with("data read 200 short, data write 200 short", &["io_uring"]);
}

#[test]
fn failing_transfers_lose_nothing_that_was_committed() {
    sweep_with("* read 30 EIO, * write 30 EIO", &BACKENDS);
}

#[test]
fn a_full_disk_loses_nothing_that_was_committed() {
    sweep_with("* write 30 ENOSPC, * reserve 200 ENOSPC", &BACKENDS);
}

#[test]
fn failing_syncs_lengths_names_and_openings_lose_nothing_that_was_committed() {
    sweep_with(
        "* sync 50 EIO, * length 50 EIO, * open 50 EIO, * rename 300 EIO",
        &BACKENDS,
    );
}

#[test]
fn lost_writes_are_errors_and_never_values() {
    sweep_with("data write 50 lost, log write 50 lost", &BACKENDS);
}

#[test]
fn torn_writes_are_errors_and_never_values() {
    sweep_with("data write 50 torn, log write 50 torn", &BACKENDS);
}

#[test]
fn stale_reads_are_errors_and_never_values() {
    sweep_with("data read 50 stale, log read 50 stale", &BACKENDS);
}

#[test]
fn all_faults_at_once_are_errors_and_never_values() {
    sweep_with(
        "* read 5 EIO, * write 5 EIO, * reserve 50 ENOSPC, * sync 10 EIO, * read 20 delay, \
         * write 20 delay, data write 10 lost, data write 10 torn, \
         data read 10 stale, log write 10 torn, log write 10 lost",
        &BACKENDS,
    );
}

#[test]
fn io_uring_does_what_the_model_does() {
    sweep("io_uring");
}

#[test]
fn threads_do_what_the_model_does() {
    sweep("threads");
}

#[test]
fn memory_does_what_the_model_does() {
    sweep("memory");
}
