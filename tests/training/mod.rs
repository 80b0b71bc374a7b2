//! Training as the tests of the optimizer swapper do it: parameters, an Adam update, and the same
//! update in plain vectors, which tells what must come back.
#![allow(dead_code, unreachable_pub, unsafe_code)]
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]
#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "views are valid until given back"
)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;

use half::{bf16, f16};
use tensorswap::base::dtype::Dtype;
use tensorswap::base::error::{Error, Result, Status};
use tensorswap::io::tensor::ACCUMULATE;
use tensorswap::io::{Engine, Tensor};
use tensorswap::optimizer::{Optimizer, ParameterView, StateView};

use crate::support::{Random, config};

/// Name, type in memory, type on storage.
pub type State = (&'static str, Dtype, Dtype);

pub const F32: [State; 3] = [
    ("master", Dtype::F32, Dtype::F32),
    ("exp_avg", Dtype::F32, Dtype::F32),
    ("exp_avg_sq", Dtype::F32, Dtype::F32),
];
pub const BF16_MOMENTS: [State; 3] = [
    ("master", Dtype::F32, Dtype::F32),
    ("exp_avg", Dtype::F32, Dtype::Bf16),
    ("exp_avg_sq", Dtype::F32, Dtype::Bf16),
];
pub const F16: [State; 3] = [
    ("master", Dtype::F16, Dtype::F16),
    ("exp_avg", Dtype::F16, Dtype::F16),
    ("exp_avg_sq", Dtype::F16, Dtype::F16),
];
/// Wider on storage than in memory, and the other way round.
pub const MIXED: [State; 3] = [
    ("master", Dtype::Bf16, Dtype::F32),
    ("exp_avg", Dtype::F32, Dtype::F16),
    ("exp_avg_sq", Dtype::F16, Dtype::F32),
];

/// Random values that Adam can work with: none is large, none is denormal.
pub fn values(numel: usize, seed: u64) -> Vec<f32> {
    let mut state = Random(seed).next() as u32 | 1;
    let mut values = vec![0.0; numel];
    for value in &mut values {
        // Numerical Recipes' generator: tests in debug builds draw many of these.
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *value = (state >> 8) as f32 / 8_388_608.0 - 0.999;
    }
    values
}

/// The nearest values that a type can express.
pub fn rounded(values: &[f32], dtype: Dtype) -> Vec<f32> {
    from_bytes(&to_bytes(values, dtype), dtype)
}

pub fn to_bytes(values: &[f32], dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::F32 => bytemuck::cast_slice(values).to_vec(),
        Dtype::F16 => values
            .iter()
            .flat_map(|value| f16::from_f32(*value).to_ne_bytes())
            .collect(),
        Dtype::Bf16 => values
            .iter()
            .flat_map(|value| bf16::from_f32(*value).to_ne_bytes())
            .collect(),
        other => panic!("no values of {}", other.name()),
    }
}

fn collected<T: bytemuck::Pod>(bytes: &[u8]) -> Vec<T> {
    let mut values = vec![T::zeroed(); bytes.len() / size_of::<T>()];
    bytemuck::cast_slice_mut(&mut values).copy_from_slice(bytes);
    values
}

pub fn from_bytes(bytes: &[u8], dtype: Dtype) -> Vec<f32> {
    match dtype {
        Dtype::F32 => collected(bytes),
        Dtype::F16 => collected::<f16>(bytes)
            .iter()
            .map(|value| value.to_f32())
            .collect(),
        Dtype::Bf16 => collected::<bf16>(bytes)
            .iter()
            .map(|value| value.to_f32())
            .collect(),
        other => panic!("no values of {}", other.name()),
    }
}

/// Elements in the memory of the caller, which keeps it where it is.
pub fn elements(bytes: &mut [u8], dtype: Dtype) -> Tensor {
    let numel = bytes.len() as u64 / dtype.size_bytes();
    unsafe { Tensor::new(bytes.as_mut_ptr(), numel, dtype) }.unwrap()
}

/// The bytes of a view, which its holder alone touches.
#[allow(clippy::mut_from_ref)]
pub fn bytes_of(view: &StateView) -> &mut [u8] {
    let len = view.numel() * view.dtype().size_bytes();
    unsafe { std::slice::from_raw_parts_mut(view.as_mut_ptr(), len as usize) }
}

pub fn load(view: &StateView) -> Vec<f32> {
    from_bytes(bytes_of(view), view.dtype())
}

pub fn store(view: &StateView, values: &[f32]) {
    bytes_of(view).copy_from_slice(&to_bytes(values, view.dtype()));
}

/// Adam on vectors of equal lengths; each element by itself, so that no order matters.
pub fn adam(states: &mut [Vec<f32>], gradient: Option<&[f32]>, step: u64) {
    let [master, mean, square] = states else {
        panic!("Adam has three states");
    };
    let (beta1, beta2, epsilon) = (0.9_f32, 0.99_f32, 1e-3_f32);
    let rate = 0.01 / (step as f32).sqrt();
    for (index, value) in master.iter_mut().enumerate() {
        let slope = gradient.map_or(0.0, |gradient| gradient[index]);
        mean[index] = beta1 * mean[index] + (1.0 - beta1) * slope;
        square[index] = beta2 * square[index] + (1.0 - beta2) * slope * slope;
        *value -= rate * mean[index] / (square[index].sqrt() + epsilon);
    }
}

/// The same on a view, in place.
pub fn update(view: &ParameterView, step: u64) {
    let mut states: Vec<Vec<f32>> = view.states().map(load).collect();
    let gradient = view.gradient().map(load);
    adam(&mut states, gradient.as_deref(), step);
    for (view, values) in view.states().zip(&states) {
        store(view, values);
    }
}

/// One parameter in plain vectors.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    pub numel: usize,
    /// Values as storage holds them.
    pub states: Vec<Vec<f32>>,
    pub gradient: Option<Vec<f32>>,
}

/// All parameters in plain vectors: what the store must hold.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    pub types: Vec<State>,
    pub records: BTreeMap<u64, Record>,
    pub step: u64,
}

impl Model {
    pub fn new(types: &[State]) -> Model {
        Model {
            types: types.to_vec(),
            records: BTreeMap::new(),
            step: 0,
        }
    }

    pub fn add(&mut self, id: u64, numel: usize) {
        let record = Record {
            numel,
            states: vec![vec![0.0; numel]; self.types.len()],
            gradient: None,
        };
        self.records.insert(id, record);
    }

    /// What becomes of values of a state that are given back: rounded to what storage holds, and
    /// to what memory holds of that.
    pub fn kept(&self, state: usize, values: &[f32]) -> Vec<f32> {
        let (_, memory, disk) = self.types[state];
        rounded(&rounded(&rounded(values, memory), disk), memory)
    }

    pub fn set(&mut self, id: u64, state: usize, values: &[f32]) {
        let kept = self.kept(state, values);
        self.records.get_mut(&id).unwrap().states[state] = kept;
    }

    /// One parameter's update.
    pub fn update(&mut self, id: u64) {
        let step = self.step + 1;
        let record = self.records.get_mut(&id).unwrap();
        let mut states = record.states.clone();
        adam(&mut states, record.gradient.as_deref(), step);
        for (state, values) in states.iter().enumerate() {
            self.set(id, state, values);
        }
    }

    /// A region of a parameter's gradient; state 0's memory type is what the update sees.
    pub fn add_gradient(&mut self, id: u64, offset: usize, values: &[f32], accumulate: bool) {
        let record = self.records.get_mut(&id).unwrap();
        let numel = record.numel;
        let gradient = record.gradient.get_or_insert_with(|| vec![0.0; numel]);
        for (to, from) in gradient[offset..].iter_mut().zip(values) {
            *to = if accumulate { *to + from } else { *from };
        }
    }

    pub fn end_gradients(&mut self) {
        for record in self.records.values_mut() {
            record.gradient = None;
        }
    }
}

/// Opens or makes a store in `directory`, with the states of `types`.
pub fn try_open(
    engine: &Engine,
    directory: &Path,
    settings: &[(&str, &str)],
    types: &[State],
) -> Result<Optimizer> {
    let path = directory.to_str().unwrap();
    let settings = [&[("path", path)], settings].concat();
    let optimizer = Optimizer::new(engine, &config(&settings))?;
    for (name, dtype, disk_dtype) in types {
        optimizer.add_state(name, *dtype, *disk_dtype)?;
    }
    Ok(optimizer)
}

/// The same with the parameters of a model.
pub fn open(
    engine: &Engine,
    directory: &Path,
    settings: &[(&str, &str)],
    model: &Model,
) -> Optimizer {
    let optimizer = try_open(engine, directory, settings, &model.types).unwrap();
    for (id, record) in &model.records {
        optimizer
            .add_parameter(*id, Some(&format!("p{id}")), record.numel as u64)
            .unwrap();
    }
    optimizer
}

/// Initializes masters with random values, all in one call; again where storage fails.
pub fn initialize(optimizer: &Optimizer, model: &mut Model, seed: u64) {
    let ids: Vec<u64> = model.records.keys().copied().collect();
    let dtype = model.types[0].1;
    let mut memory: Vec<Vec<u8>> = ids
        .iter()
        .map(|id| to_bytes(&values(model.records[id].numel, seed ^ id), dtype))
        .collect();
    let sources: Vec<Tensor> = memory
        .iter_mut()
        .map(|bytes| elements(bytes, dtype))
        .collect();
    let initialized = (0..1000).any(|_| {
        let outcome = optimizer.initialize_parameters(&ids, &sources);
        let error = outcome.as_ref().map_or_else(Error::status, |()| Status::Ok);
        assert!(matches!(error, Status::Ok | Status::Io | Status::NoSpace));
        outcome.is_ok()
    });
    assert!(initialized);
    for (id, bytes) in ids.iter().zip(&memory) {
        model.set(*id, 0, &from_bytes(bytes, dtype));
    }
}

/// Swaps a region of a gradient out, on both sides. The values must be exact in `dtype`.
pub fn give_gradient(
    optimizer: &Optimizer,
    model: &mut Model,
    id: u64,
    offset: usize,
    (values, dtype): (&[f32], Dtype),
    accumulate: bool,
) {
    let mut bytes = to_bytes(values, dtype);
    let flags = if accumulate { ACCUMULATE } else { 0 };
    let tensor = elements(&mut bytes, dtype).with_flags(flags).unwrap();
    optimizer
        .swap_out_gradients(id, &[offset as u64], &[tensor])
        .unwrap();
    // The memory is the caller's again.
    bytes.fill(0xEE);
    model.add_gradient(id, offset, values, accumulate);
}

/// Gives out every record of the open step, in some threads; returns the order in which they came.
pub fn drain(
    optimizer: &Optimizer,
    threads: usize,
    work: &(dyn Fn(&ParameterView) -> bool + Sync),
) -> Vec<u64> {
    let order = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(view) = optimizer.step_next().unwrap() {
                    order.lock().unwrap().push(view.id);
                    let changed = work(&view);
                    optimizer.step_done(view.id, changed).unwrap();
                }
            });
        }
    });
    order.into_inner().unwrap()
}

/// One whole step of Adam on both sides; parameters for which `skips` holds are left unchanged.
pub fn step(
    optimizer: &Optimizer,
    model: &mut Model,
    ids: Option<&[u64]>,
    threads: usize,
    skips: &(dyn Fn(u64) -> bool + Sync),
) {
    optimizer.step_begin(ids).unwrap();
    let number = model.step + 1;
    let mut given = drain(optimizer, threads, &|view| {
        let expected = model.records[&view.id].gradient.as_deref();
        let gradient = view.gradient().map(load);
        assert!(gradient.as_deref() == expected, "gradient of {}", view.id);
        let changes = !skips(view.id);
        if changes {
            update(view, number);
        }
        changes
    });
    optimizer.step_end().unwrap();
    for id in &given {
        if !skips(*id) {
            model.update(*id);
        }
    }
    given.sort_unstable();
    let mut asked = ids.map_or_else(|| model.records.keys().copied().collect(), <[u64]>::to_vec);
    asked.sort_unstable();
    assert_eq!(given, asked, "each record of the step once");
    model.end_gradients();
    model.step = number;
    assert_eq!(optimizer.step_number(), number);
}

/// One state as the optimizer tells it.
pub fn read_state(optimizer: &Optimizer, model: &Model, id: u64, state: usize) -> Result<Vec<f32>> {
    let (name, dtype, _) = model.types[state];
    let mut bytes = vec![0xEE; model.records[&id].numel * dtype.size_bytes() as usize];
    optimizer.read_state(id, name, &elements(&mut bytes, dtype))?;
    Ok(from_bytes(&bytes, dtype))
}

/// Every state of every parameter is what the model says, bit for bit.
pub fn verify(optimizer: &Optimizer, model: &Model, context: &str) {
    assert_eq!(optimizer.step_number(), model.step, "{context}");
    for (id, record) in &model.records {
        for (state, expected) in record.states.iter().enumerate() {
            let found = read_state(optimizer, model, *id, state).unwrap();
            let differs = found
                .iter()
                .zip(expected)
                .position(|(found, expected)| found.to_bits() != expected.to_bits());
            assert_eq!(differs, None, "{context}: {id} state {state}");
        }
    }
}

/// Opens a step. Where the commit of an earlier step failed behind our back, all is as it was at
/// the last durable one, and so is the model then, taken from those at the end of each step.
pub fn begin_again(optimizer: &Optimizer, model: &mut Model, history: &[Model]) {
    for _ in 0..1000 {
        let Err(error) = optimizer.step_begin(None) else {
            return;
        };
        let status = error.status();
        assert!(matches!(status, Status::Io | Status::NoSpace), "{error}");
        let step = optimizer.step_number();
        let durable = history.iter().find(|model| model.step == step);
        model.clone_from(durable.unwrap());
    }
    panic!("no step can be begun");
}
