//! The store closed and opened again, also after faults.

use std::collections::{BTreeMap, BTreeSet};

use tensorswap::base::error::Status;

use crate::training::*;
use crate::world::{Saved, World};

impl World {
    /// Drops everything that was not committed, and opens the store again.
    pub(crate) fn reopen(&mut self) {
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
    pub(crate) fn close(&mut self) -> u64 {
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
    pub(crate) fn go_back_to(&mut self, saved: Saved) {
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

    pub(crate) fn attach(&mut self, id: u64) {
        let (numel, name) = (self.numel(id) as u64, format!("p{id}"));
        let added = self.optimizer().add_parameter(id, Some(&name), numel);
        added.unwrap();
        self.attached.insert(id);
    }

    /// After faults: the store opens at a step that was committed, and every value that it gives is
    /// of that step. What storage lost without a word is an error, and can be initialized anew.
    pub(crate) fn recover(&mut self) {
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
        let mut read = BTreeMap::new();
        for id in self.attached.clone() {
            for state in 0..self.now.types.len() {
                match read_state(self.optimizer(), &self.now, id, state) {
                    Ok(value) => _ = read.insert((id, state), Some(value)),
                    Err(error) => {
                        assert!(self.is_lied_to(), "{error}");
                        assert_eq!(error.status(), Status::Checksum, "{error}");
                        read.insert((id, state), None);
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
                && read.iter().all(is_equal)
        };
        let saved = self.saved.iter().rev().find(is_it).cloned();
        let Some(saved) = saved else {
            panic!("opened at {step} with what was never committed");
        };
        self.log.push(format!("reopened at {step} after faults"));
        self.go_back_to(saved);
        let is_bad = |((id, _), value): (_, Option<_>)| value.is_none().then_some(id);
        let bad: BTreeSet<u64> = read.into_iter().filter_map(is_bad).collect();
        for id in bad {
            let dtype = self.now.types[0].1;
            let fresh = rounded(&values(self.numel(id), self.random.next()), dtype);
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
    pub(crate) fn begin_anew(&mut self) {
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
}
