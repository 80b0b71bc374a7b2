//! Records brought in and given back one by one.

use tensorswap::base::error::Status;
use tensorswap::optimizer::ParameterView;

use crate::training::*;
use crate::world::World;

impl World {
    /// A view shows the record as it is, and its gradient.
    pub(crate) fn check_view(&self, view: &ParameterView) {
        let record = &self.now.records[&view.id];
        assert_eq!(view.numel, record.numel as u64);
        for (state, found) in view.states().enumerate() {
            assert!(load(found) == record.states[state], "{} {state}", view.id);
        }
        let gradient = view.gradient().map(load);
        assert!(gradient == record.gradient, "gradient of {}", view.id);
    }

    pub(crate) fn swap_in(&mut self) {
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

    pub(crate) fn swap_out(&mut self) {
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

    pub(crate) fn release(&mut self) {
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
}
