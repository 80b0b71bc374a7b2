//! Gradients between backward and the step.

use tensorswap::base::error::Status;

use crate::training::*;
use crate::world::World;

impl World {
    pub(crate) fn gradient(&mut self) {
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

    pub(crate) fn around_backward(&mut self) {
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

    pub(crate) fn gradient_norm(&mut self) {
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
}
