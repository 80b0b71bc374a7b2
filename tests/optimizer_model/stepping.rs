//! Steps: begun, worked through, ended, aborted.

use std::collections::BTreeSet;

use tensorswap::base::error::{Error, Status};

use crate::training::*;
use crate::world::{Step, World};

impl World {
    pub(crate) fn step_begin(&mut self) {
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

    pub(crate) fn step_next(&mut self) {
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

    pub(crate) fn step_done(&mut self) {
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

    pub(crate) fn step_end(&mut self) {
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

    pub(crate) fn step_abort(&mut self) {
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
}
