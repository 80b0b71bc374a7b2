//! Parameters and what storage holds of them: registered, initialized, committed, looked at.

use std::collections::BTreeSet;
use std::ffi::CString;

use tensorswap::base::dtype::Dtype;
use tensorswap::base::error::Status;
use tensorswap::io::Tensor;
use tensorswap::optimizer::{NO_PARAMETER, Partition};

use crate::support::*;
use crate::training::*;
use crate::world::{PARAMETERS_MAX, World};

impl World {
    pub(crate) fn add_parameter(&mut self) {
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

    pub(crate) fn add_state(&mut self) {
        if self.attached.is_empty() {
            return;
        }
        let result = self.optimizer().add_state("late", Dtype::F32, Dtype::F32);
        self.settle("add_state", result, &[Status::InvalidArgument]);
    }

    pub(crate) fn initialize(&mut self) {
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
    pub(crate) fn set_fresh(&mut self, id: u64, master: &[f32]) {
        self.note_rewritten(id);
        let zeros = vec![0.0; master.len()];
        self.now.set(id, 0, master);
        for state in 1..self.now.types.len() {
            self.now.set(id, state, &zeros);
        }
    }

    /// Pieces in memory and in a raw file, which cover a parameter, or do not.
    pub(crate) fn initialize_from_swapped(&mut self) {
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

    pub(crate) fn commit(&mut self) {
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

    pub(crate) fn purge(&mut self) {
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
    pub(crate) fn access_state(&mut self, writes: bool) {
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

    pub(crate) fn set_user_data(&mut self) {
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
    pub(crate) fn look(&mut self) {
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
}
