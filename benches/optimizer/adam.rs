//! The update: Adam in 32 bits, a plain loop that the compiler turns into vector instructions.

use crate::shapes::Shape;

/// What stays the same over one step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rates {
    beta1: f32,
    beta2: f32,
    rate: f32,
}

impl Rates {
    /// Those of a step, counted from 1.
    pub(crate) fn of(step: u64) -> Rates {
        let warm_up = (step.min(1000) as f32 / 1000.0).max(0.01);
        Rates {
            beta1: 0.9,
            beta2: 0.999,
            rate: 1e-3 * warm_up,
        }
    }
}

/// Master, mean and square of some elements.
#[derive(Debug)]
pub(crate) struct States<'a> {
    pub(crate) master: &'a mut [f32],
    pub(crate) mean: &'a mut [f32],
    pub(crate) square: &'a mut [f32],
}

/// Updates some elements.
pub(crate) fn update(states: States<'_>, gradient: &[f32], rates: Rates) {
    let moments = states.mean.iter_mut().zip(states.square);
    let elements = states.master.iter_mut().zip(moments).zip(gradient);
    for ((master, (mean, square)), slope) in elements {
        *mean = rates.beta1 * *mean + (1.0 - rates.beta1) * slope;
        *square = rates.beta2 * *square + (1.0 - rates.beta2) * slope * slope;
        *master -= rates.rate * *mean / (square.sqrt() + 1e-8);
    }
}

/// Memory that updates run over when nothing is swapped.
#[derive(Debug)]
pub(crate) struct InMemory {
    /// For each thread the three states and the gradient of the largest parameter, twice, so that
    /// no cache holds what comes next.
    areas: Vec<[Vec<f32>; 8]>,
}

impl InMemory {
    pub(crate) fn new(shape: &Shape, threads: usize) -> InMemory {
        let numel = shape.largest();
        let area = |_| std::array::from_fn(|_| vec![0.5; numel]);
        InMemory {
            areas: (0..threads).map(area).collect(),
        }
    }

    /// The update of every parameter of a step by `threads` threads.
    pub(crate) fn step(&mut self, shape: &Shape, threads: usize, rates: Rates) {
        let next = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for area in &mut self.areas[..threads] {
                let (shape, next) = (&shape, &next);
                scope.spawn(move || {
                    loop {
                        let index = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        let Some(numel) = shape.numels.get(index) else {
                            return;
                        };
                        let (first, second) = area.split_at_mut(4);
                        let half = if index % 2 == 0 { first } else { second };
                        let [master, mean, square, gradient] = half else {
                            return;
                        };
                        let states = States {
                            master: &mut master[..*numel],
                            mean: &mut mean[..*numel],
                            square: &mut square[..*numel],
                        };
                        update(states, &gradient[..*numel], rates);
                    }
                });
            }
        });
    }
}
