//! A model in training: a store on disk, and what some of its parameters must hold.

use std::io::{Error, Result};
use std::path::{Path, PathBuf};
use std::time::Instant;

use half::bf16;
use tensorswap::base::config::Config;
use tensorswap::base::dtype::Dtype;
use tensorswap::io::{Engine, Tensor};
use tensorswap::optimizer::{Optimizer, OptimizerStats, ParameterView, StateView};

use crate::adam::{Rates, States, update};
use crate::cases::{Case, Types};
use crate::common::figures::cpu_seconds;
use crate::options::Options;
use crate::shapes::Shape;

/// Gradients begin at one of so many places in the same random values.
const SHIFTS: usize = 4096;

/// What the steps of one turn took; all but the peaks are of one step on average.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    pub(crate) seconds: f64,
    /// An explicit commit right after the last step.
    pub(crate) commit_seconds: f64,
    pub(crate) cpu_seconds: f64,
    pub(crate) read_bytes: f64,
    pub(crate) written_bytes: f64,
    /// Time in which views were out, summed over views.
    pub(crate) update_seconds: f64,
    pub(crate) wait_read_seconds: f64,
    pub(crate) wait_write_seconds: f64,
    pub(crate) pinned_peak_bytes: u64,
    pub(crate) pinned_computed_bytes: u64,
    pub(crate) depth_peak: u64,
}

/// A parameter that is followed in memory.
struct Followed {
    index: usize,
    states: [Vec<f32>; 3],
}

/// A store and what it must hold.
pub(crate) struct Training {
    directory: PathBuf,
    shape: Shape,
    types: Types,
    settings: Vec<(String, String)>,
    /// Random values from which gradients are taken.
    slopes: Vec<bf16>,
    followed: Vec<Followed>,
    steps_done: u64,
}

fn other(error: impl std::fmt::Display) -> Error {
    Error::other(error.to_string())
}

fn random_values(numel: usize, seed: u64) -> impl Iterator<Item = f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..numel).map(move |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / 8_388_608.0 - 1.0
    })
}

/// Elements in memory that outlives the call it is made for.
fn elements<T>(values: &mut [T], dtype: Dtype) -> Result<Tensor> {
    let numel = u64::try_from(values.len()).map_err(other)?;
    // SAFETY: the slice is borrowed mutably; the calls that take the tensor return only when they
    // are done with it.
    unsafe { Tensor::new(values.as_mut_ptr().cast(), numel, dtype) }.map_err(other)
}

/// The values of a view in 32 bits.
#[allow(clippy::mut_from_ref, reason = "the memory is not the view's")]
fn values_of(view: &StateView) -> Result<&mut [f32]> {
    let numel = usize::try_from(view.numel()).map_err(other)?;
    if view.dtype() != Dtype::F32 {
        return Err(other("a view is not of 32 bits"));
    }
    // SAFETY: the view is this thread's alone until it is given back, which its holder does last.
    Ok(unsafe { std::slice::from_raw_parts_mut(view.as_mut_ptr().cast(), numel) })
}

impl Training {
    /// Makes a store, initializes it, and takes two steps, after which every write rewrites blocks.
    pub(crate) fn new(options: &Options, shape: &Shape, types: Types) -> Result<Training> {
        let directory = options.directory().join(format!("{types:?}"));
        std::fs::create_dir_all(&directory)?;
        let count = shape.numels.len();
        let mut followed = vec![0, count / 2, count - 1];
        followed.dedup();
        let follow = |index| Followed {
            index,
            states: std::array::from_fn(|_| vec![0.0; shape.numels[index]]),
        };
        let mut training = Training {
            directory,
            shape: shape.clone(),
            types,
            settings: options.common.set.clone(),
            slopes: random_values(shape.largest() + SHIFTS, 1)
                .map(bf16::from_f32)
                .collect(),
            followed: followed.into_iter().map(follow).collect(),
            steps_done: 0,
        };
        let (_engine, optimizer) = training.open(&[("store", "new".to_owned())])?;
        training.initialize(&optimizer)?;
        for _ in 0..2 {
            training.give_gradients(&optimizer)?;
            training.step(&optimizer, 1)?;
            training.follow();
        }
        optimizer.commit().map_err(other)?;
        Ok(training)
    }

    /// Opens the store and registers all parameters.
    pub(crate) fn open(&self, settings: &[(&str, String)]) -> Result<(Engine, Optimizer)> {
        let (engine, optimizer) = self.open_empty(settings)?;
        for (id, numel) in (0..).zip(&self.shape.numels) {
            let numel = u64::try_from(*numel).map_err(other)?;
            optimizer.add_parameter(id, None, numel).map_err(other)?;
        }
        Ok((engine, optimizer))
    }

    /// Opens a store with the states, and registers no parameter.
    pub(crate) fn open_empty(&self, settings: &[(&str, String)]) -> Result<(Engine, Optimizer)> {
        let mut config = Config::new();
        let path = self
            .directory
            .to_str()
            .ok_or_else(|| other("a strange path"))?;
        config.set("path", path).map_err(other)?;
        for (key, value) in settings {
            config.set(key, value).map_err(other)?;
        }
        for (key, value) in &self.settings {
            config.set(key, value).map_err(other)?;
        }
        let engine = Engine::new(&config).map_err(other)?;
        let optimizer = Optimizer::new(&engine, &config).map_err(other)?;
        for (name, dtype, disk_dtype) in self.types.states() {
            optimizer
                .add_state(name, dtype, disk_dtype)
                .map_err(other)?;
        }
        Ok((engine, optimizer))
    }

    fn initialize(&mut self, optimizer: &Optimizer) -> Result<()> {
        for (id, (index, numel)) in (0..).zip(self.shape.numels.iter().enumerate()) {
            let mut values: Vec<f32> = random_values(*numel, id + 2).collect();
            let source = elements(&mut values, Dtype::F32)?;
            optimizer
                .initialize_parameters(&[id], &[source])
                .map_err(other)?;
            let mut followed = self.followed.iter_mut();
            if let Some(followed) = followed.find(|followed| followed.index == index) {
                followed.states[0] = values;
            }
        }
        Ok(())
    }

    /// Where the gradient of a parameter begins in the next step.
    fn shift(&self, index: usize) -> usize {
        let step = usize::try_from(self.steps_done).unwrap_or(0);
        (index * 7919 + step * 104_729) % SHIFTS
    }

    /// Gives the next step its gradients.
    pub(crate) fn give_gradients(&mut self, optimizer: &Optimizer) -> Result<()> {
        optimizer.pre_backward().map_err(other)?;
        for (id, (index, numel)) in (0..).zip(self.shape.numels.clone().into_iter().enumerate()) {
            let shift = self.shift(index);
            let gradient = elements(&mut self.slopes[shift..shift + numel], Dtype::Bf16)?;
            let given = optimizer.swap_out_gradients(id, &[0], &[gradient]);
            given.map_err(other)?;
        }
        optimizer.post_backward().map_err(other)
    }

    /// One step; seconds from its beginning to its end.
    pub(crate) fn step(&self, optimizer: &Optimizer, threads: usize) -> Result<f64> {
        let rates = Rates::of(self.steps_done + 1);
        let start = Instant::now();
        optimizer.step_begin(None).map_err(other)?;
        let work = || -> Result<()> {
            while let Some(view) = optimizer
                .step_next()
                .map_err(|failed| other(failed.error))?
            {
                update_view(&view, rates)?;
                optimizer.step_done(view.id, true).map_err(other)?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            work()?;
            others.into_iter().try_for_each(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|_| Err(other("a thread panicked")))
            })
        })?;
        optimizer.step_end().map_err(other)?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// The step in memory, for the parameters that are followed.
    pub(crate) fn follow(&mut self) {
        let rates = Rates::of(self.steps_done + 1);
        let mut followed = std::mem::take(&mut self.followed);
        for Followed { index, states } in &mut followed {
            let shift = self.shift(*index);
            let slopes = &self.slopes[shift..shift + states[0].len()];
            let gradient: Vec<f32> = slopes.iter().map(|slope| slope.to_f32()).collect();
            let [master, mean, square] = states;
            let states = States {
                master,
                mean,
                square,
            };
            update(states, &gradient, rates);
            if self.types == Types::Bf16Moments {
                for value in mean.iter_mut().chain(square) {
                    *value = bf16::from_f32(*value).to_f32();
                }
            }
        }
        self.followed = followed;
        self.steps_done += 1;
    }

    /// Opens the store as a case wants it; one step to warm up, then `steps` that count.
    pub(crate) fn turn(&mut self, case: &Case, steps: usize) -> Result<Sample> {
        let state_bytes = self.shape.elements() * case.types.element_bytes();
        let cache_bytes = state_bytes / 100 * case.cache_percent;
        let is_pipelined = case.is_pipelined.to_string();
        let sync = if case.is_synced { "commit" } else { "none" };
        let (engine, optimizer) = self.open(&[
            ("sync", sync.to_owned()),
            ("cache_bytes", cache_bytes.to_string()),
            ("checksum", case.checksum.to_owned()),
            ("pipeline_read", is_pipelined.clone()),
            ("pipeline_write", is_pipelined),
            ("views_max", case.threads.max(2).to_string()),
        ])?;
        self.give_gradients(&optimizer)?;
        self.step(&optimizer, case.threads)?;
        self.follow();
        let (mut seconds, mut cpu) = (0.0, 0.0);
        if case.is_synced {
            optimizer.commit().map_err(other)?;
        }
        let before = optimizer.stats();
        for _ in 0..steps {
            self.give_gradients(&optimizer)?;
            let cpu_before = cpu_seconds();
            seconds += self.step(&optimizer, case.threads)?;
            cpu += cpu_seconds() - cpu_before;
            self.follow();
        }
        let unsynced = optimizer.stats();
        let start = Instant::now();
        optimizer.commit().map_err(other)?;
        let commit_seconds = start.elapsed().as_secs_f64();
        // What is written after the last step belongs to it where every step is made durable.
        let after = if case.is_synced {
            optimizer.stats()
        } else {
            unsynced
        };
        let count = steps as f64;
        let per_step = |of: fn(&OptimizerStats) -> u64| (of(&after) - of(&before)) as f64 / count;
        Ok(Sample {
            seconds: seconds / count,
            commit_seconds,
            cpu_seconds: cpu / count,
            read_bytes: per_step(|stats| stats.read_bytes),
            written_bytes: per_step(|stats| stats.written_bytes),
            update_seconds: per_step(|stats| stats.update_ns) / 1e9,
            wait_read_seconds: per_step(|stats| stats.wait_read_ns) / 1e9,
            wait_write_seconds: per_step(|stats| stats.wait_write_ns) / 1e9,
            pinned_peak_bytes: after.pinned_peak_bytes,
            pinned_computed_bytes: after.pinned_computed_bytes,
            depth_peak: engine.stats().in_flight_peak_count,
        })
    }

    /// Compares the parameters that were followed with what the store holds, bit for bit.
    pub(crate) fn verify(&self) -> Result<()> {
        let (_engine, optimizer) = self.open(&[("store", "existing".to_owned())])?;
        self.compare(&optimizer)
    }

    /// Does so with an open store.
    pub(crate) fn compare(&self, optimizer: &Optimizer) -> Result<()> {
        if optimizer.step_number() != self.steps_done {
            return Err(other(format!("{} steps are missing", self.steps_done)));
        }
        for Followed { index, states } in &self.followed {
            for ((name, ..), expected) in self.types.states().iter().zip(states) {
                let mut found = vec![0.0_f32; expected.len()];
                let id = u64::try_from(*index).map_err(other)?;
                let into = elements(&mut found, Dtype::F32)?;
                optimizer.read_state(id, name, &into).map_err(other)?;
                let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits();
                if !found.iter().zip(expected).all(same) {
                    return Err(other(format!("{name} of parameter {index} is wrong")));
                }
            }
        }
        Ok(())
    }

    /// The directory of the store.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }
}

impl Drop for Training {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(self.directory());
    }
}

fn update_view(view: &ParameterView, rates: Rates) -> Result<()> {
    let mut states = view.states();
    let mut state = || states.next().ok_or_else(|| other("a state is missing"));
    let states = States {
        master: values_of(state()?)?,
        mean: values_of(state()?)?,
        square: values_of(state()?)?,
    };
    let gradient = view.gradient().ok_or_else(|| other("no gradient"))?;
    update(states, values_of(gradient)?, rates);
    Ok(())
}
