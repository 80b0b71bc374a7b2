use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use proptest::prelude::*;

use super::gradients::{Gradients, Limits};
use crate::base::config::{Config, GradientPlace, OptimizerOptions};
use crate::base::dtype::Dtype;
use crate::base::error::{Error, Status};
use crate::io::tensor::ACCUMULATE;
use crate::io::{Engine, FaultPlan, Tensor};
use crate::memory::numbers::{self, Rounder};
use crate::memory::{Block, MemoryRange};
use crate::optimizer::GradientNorm;

const TYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];

/// Small enough that short lists reach every branch.
const SMALL: Limits = Limits {
    spill_from_bytes: 4096,
    chunk_bytes: 4096,
};

fn engine(backend: &str) -> Engine {
    let mut config = Config::new();
    config.set("backend", backend).unwrap();
    Engine::new(&config).unwrap()
}

fn options(keys: &[(&str, &str)]) -> OptimizerOptions {
    let mut config = Config::new();
    config.set("path", "/not/used/here").unwrap();
    for (key, value) in keys {
        config.set(key, value).unwrap();
    }
    OptimizerOptions::from_config(&config).unwrap()
}

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

/// Values in memory of their own, as a tensor at an address that is `start` bytes off.
struct Source {
    tensor: Tensor,
    _block: Block,
}

fn source(values: &[f32], dtype: Dtype, accumulate: bool, start: usize) -> Source {
    let len = values.len() * dtype.size_bytes() as usize;
    let block = Block::allocate((start + len) as u64).unwrap();
    let memory = block.range().slice(start, len).unwrap();
    memory.update(|to| {
        let from = bytemuck::cast_slice(values);
        numbers::convert(from, Dtype::F32, to, dtype, Rounder::Nearest).unwrap();
    });
    let tensor = Tensor {
        memory,
        numel: values.len() as u64,
        dtype,
        flags: if accumulate { ACCUMULATE } else { 0 },
        file_offset: 0,
        user_tag: 0,
    };
    Source {
        tensor,
        _block: block,
    }
}

fn values_of(memory: MemoryRange, dtype: Dtype) -> Vec<f32> {
    memory.inspect(|from| {
        let mut values = vec![0.0; from.len() / dtype.size_bytes() as usize];
        let to = bytemuck::cast_slice_mut(&mut values);
        numbers::convert(from, dtype, to, Dtype::F32, Rounder::Nearest).unwrap();
        values
    })
}

impl Gradients {
    /// One piece for a parameter whose record has the number of its id.
    fn take(&self, id: u32, numel: usize, offset: u64, source: &Source) -> Result<(), Error> {
        self.swap_out(id, u64::from(id), numel as u64, &[offset], &[source.tensor])
    }

    /// What a step would see, and the end of the gradient.
    fn seen(&self, id: u32, dtype: Dtype) -> Option<Vec<f32>> {
        let mut lent = self.lend(id).unwrap()?;
        let values = values_of(lent.view(dtype).unwrap(), dtype);
        self.give_back(lent, false);
        Some(values)
    }
}

/// Elements of the parameters: shorter and longer than what is spilled, odd and even.
const NUMELS: [usize; 3] = [700, 5001, 12_000];

#[derive(Debug, Clone)]
struct Piece {
    offset: usize,
    /// Small whole numbers: exact in every type, and so are their sums.
    values: Vec<f32>,
    dtype: Dtype,
    accumulate: bool,
    start: usize,
}

#[derive(Debug, Clone)]
enum Action {
    Take {
        parameter: usize,
        pieces: Vec<Piece>,
    },
    Norm {
        parameter: usize,
    },
    See {
        parameter: usize,
        dtype: Dtype,
        keep: bool,
    },
    Discard {
        parameter: usize,
    },
    DiscardAll,
    Submit,
    Flush,
}

fn any_piece(numel: usize) -> impl Strategy<Value = Piece> {
    let range = (0..numel, prop_oneof![0..50_usize, 0..numel, Just(numel)])
        .prop_map(move |(offset, len)| (offset, len.min(numel - offset)));
    let range = prop_oneof![4 => range, 1 => Just((0, numel))];
    let dtype = prop::sample::select(TYPES.to_vec());
    (range, dtype, any::<bool>(), 0..3_usize, any::<u8>()).prop_map(
        |((offset, len), dtype, accumulate, start, salt)| Piece {
            offset,
            values: (0..len)
                .map(|at| f32::from((at * 7 + usize::from(salt)) as u8 % 5) - 2.0)
                .collect(),
            dtype,
            accumulate,
            start,
        },
    )
}

fn any_action() -> impl Strategy<Value = Action> {
    let parameter = 0..NUMELS.len();
    prop_oneof![
        6 => parameter.clone().prop_flat_map(|parameter| {
            prop::collection::vec(any_piece(NUMELS[parameter]), 0..4)
                .prop_map(move |pieces| Action::Take { parameter, pieces })
        }),
        2 => parameter.clone().prop_map(|parameter| Action::Norm { parameter }),
        4 => (parameter.clone(), prop::sample::select(TYPES.to_vec()), any::<bool>())
            .prop_map(|(parameter, dtype, keep)| Action::See { parameter, dtype, keep }),
        1 => parameter.prop_map(|parameter| Action::Discard { parameter }),
        1 => Just(Action::DiscardAll),
        1 => Just(Action::Submit),
        1 => Just(Action::Flush),
    ]
}

fn any_options() -> impl Strategy<Value = OptimizerOptions> {
    let place = prop::sample::select(GradientPlace::NAMES.to_vec());
    let dtype = prop::sample::select(vec!["auto", "f32", "f16", "bf16"]);
    (place, dtype).prop_map(|(place, dtype)| {
        options(&[
            ("gradients", place),
            ("gradient_dtype", dtype),
            // Room for some of the parameters in some of the types.
            ("gradient_bytes", "30000"),
        ])
    })
}

/// A gradient as it ought to be: an element that was not written is `None`.
type Model = Vec<Option<f32>>;

fn model_take(model: &mut Model, piece: &Piece) {
    for (element, value) in model[piece.offset..].iter_mut().zip(&piece.values) {
        let before = element.filter(|_| piece.accumulate).unwrap_or(0.0);
        *element = Some(before + value);
    }
}

fn act(gradients: &Gradients, models: &mut [Model], action: &Action) {
    let is_written = |model: &Model| model.iter().any(Option::is_some);
    let dense = |model: &Model| -> Vec<f32> { model.iter().map(|v| v.unwrap_or(0.0)).collect() };
    match action {
        Action::Take { parameter, pieces } => {
            let sources: Vec<_> = pieces
                .iter()
                .map(|piece| source(&piece.values, piece.dtype, piece.accumulate, piece.start))
                .collect();
            let tensors: Vec<_> = sources.iter().map(|source| source.tensor).collect();
            let offsets: Vec<_> = pieces.iter().map(|piece| piece.offset as u64).collect();
            let numel = NUMELS[*parameter] as u64;
            gradients
                .swap_out(
                    *parameter as u32,
                    100 + *parameter as u64,
                    numel,
                    &offsets,
                    &tensors,
                )
                .unwrap();
            // The memory is the caller's again.
            for source in &sources {
                source.tensor.memory.update(|bytes| bytes.fill(0x7f));
            }
            for piece in pieces {
                model_take(&mut models[*parameter], piece);
            }
        }
        Action::Norm { parameter } => {
            let squares = dense(&models[*parameter]);
            let expected = GradientNorm {
                sum_of_squares: squares.iter().map(|v| f64::from(v * v)).sum(),
                nonfinite_count: 0,
            };
            assert_eq!(gradients.norm(*parameter as u32), Ok(expected));
        }
        Action::See {
            parameter,
            dtype,
            keep,
        } => {
            let model = &mut models[*parameter];
            let lent = gradients.lend(*parameter as u32).unwrap();
            assert_eq!(lent.is_some(), is_written(model));
            if let Some(mut lent) = lent {
                let view = lent.view(*dtype).unwrap();
                let (seen, expected) = (values_of(view, *dtype), dense(model));
                let differs = (0..seen.len()).find(|at| seen[*at] != expected[*at]);
                assert_eq!(
                    differs,
                    None,
                    "{:?}",
                    differs.map(|at| (seen[at], expected[at]))
                );
                assert_eq!(lent.view(*dtype), Ok(view));
                gradients.give_back(lent, *keep);
                if !keep {
                    model.fill(None);
                }
            }
        }
        Action::Discard { parameter } => {
            gradients.discard(*parameter as u32);
            models[*parameter].fill(None);
        }
        Action::DiscardAll => {
            gradients.discard_all();
            models.iter_mut().for_each(|model| model.fill(None));
        }
        Action::Submit => gradients.submit().unwrap(),
        Action::Flush => gradients.flush().unwrap(),
    }
}

fn walk(engine: &Engine, options: &OptimizerOptions, directory: &Path, actions: &[Action]) {
    let gradients = Gradients::with_limits(engine, options, &c_path(directory), SMALL);
    let mut models: Vec<Model> = NUMELS.iter().map(|numel| vec![None; *numel]).collect();
    for action in actions {
        act(&gradients, &mut models, action);
    }
    for parameter in 0..NUMELS.len() {
        let last = Action::See {
            parameter,
            dtype: Dtype::F32,
            keep: false,
        };
        act(&gradients, &mut models, &last);
        assert!(gradients.lend(parameter as u32).unwrap().is_none());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn any_use_agrees_with_a_dense_model_in_memory(
        options in any_options(),
        actions in prop::collection::vec(any_action(), 1..25),
    ) {
        walk(&engine("memory"), &options, Path::new("/nowhere"), &actions);
        prop_assert!(!Path::new("/nowhere").exists());
    }

    #[test]
    fn any_use_agrees_with_a_dense_model_on_disk(
        options in any_options(),
        actions in prop::collection::vec(any_action(), 1..25),
    ) {
        let directory = tempfile::tempdir_in(".").unwrap();
        walk(&engine("auto"), &options, directory.path(), &actions);
        let left = std::fs::read_dir(directory.path()).unwrap().count();
        prop_assert_eq!(left, 0, "files are left behind");
    }
}

fn ramp(len: usize, from: usize) -> Vec<f32> {
    (0..len).map(|at| ((at + from) as f32).sin()).collect()
}

/// DeepSpeed reads fragments straight to unaligned places, and wrong where direct I/O demands
/// alignment: a parameter that began at element 300050 got 299776 wrong elements.
#[test]
fn gradients_at_element_300050_come_back_exactly() {
    const NUMEL: usize = 600_064;
    const OFFSET: usize = 300_050;
    for place in ["disk", "memory"] {
        let directory = tempfile::tempdir_in(".").unwrap();
        let engine = engine("auto");
        let options = options(&[("gradients", place)]);
        let gradients = Gradients::new(&engine, &options, &c_path(directory.path()));
        let head = source(&ramp(OFFSET, 0), Dtype::F32, false, 0);
        let tail = source(&ramp(NUMEL - OFFSET, OFFSET), Dtype::F32, false, 4);
        let numel = NUMEL as u64;
        let offsets = [OFFSET as u64, 0];
        gradients
            .swap_out(0, 9, numel, &offsets, &[tail.tensor, head.tensor])
            .unwrap();
        let (in_files, in_memory) = match place {
            "disk" => (numel * 4, 0),
            _ => (0, numel * 4),
        };
        assert_eq!(gradients.spilled_bytes(), in_files);
        assert_eq!(gradients.memory_bytes(), in_memory);
        assert!(
            gradients.seen(0, Dtype::F32).unwrap() == ramp(NUMEL, 0),
            "{place}"
        );
    }
}

/// DeepSpeed reads the last step's file for a gradient that was not produced, and leaves in
/// regions that were never written whatever used the buffer before.
#[test]
fn the_last_step_is_never_seen_again_and_uncovered_regions_are_zero() {
    const NUMEL: usize = 300_000;
    for place in ["disk", "memory"] {
        let directory = tempfile::tempdir_in(".").unwrap();
        let engine = engine("auto");
        let options = options(&[("gradients", place)]);
        let gradients = Gradients::new(&engine, &options, &c_path(directory.path()));
        let full = source(&vec![3.5; NUMEL], Dtype::F32, false, 0);
        gradients.take(1, NUMEL, 0, &full).unwrap();
        gradients.take(2, NUMEL, 0, &full).unwrap();
        assert!(gradients.seen(1, Dtype::F32).is_some());
        assert!(gradients.seen(2, Dtype::F32).is_some());

        let piece = source(&[1.25; 1000], Dtype::F32, true, 0);
        gradients.take(1, NUMEL, 150_001, &piece).unwrap();
        let mut expected = vec![0.0; NUMEL];
        expected[150_001..151_001].fill(1.25);
        assert!(
            gradients.seen(1, Dtype::F32).unwrap() == expected,
            "{place}"
        );
        assert!(gradients.lend(2).unwrap().is_none(), "{place}");
        assert_eq!(gradients.norm(2), Ok(GradientNorm::default()));
    }
}

#[test]
fn a_gradient_in_memory_is_given_out_where_it_lies() {
    let gradients = Gradients::new(&engine("memory"), &options(&[]), c"/nowhere");
    let mut addresses = Vec::new();
    for _step in 0..2 {
        gradients
            .take(0, 100, 0, &source(&ramp(100, 0), Dtype::Bf16, false, 0))
            .unwrap();
        let mut lent = gradients.lend(0).unwrap().unwrap();
        addresses.push(lent.view(Dtype::Bf16).unwrap().address());
        assert!(lent.room.is_none());
        gradients.give_back(lent, false);
    }
    assert_eq!(
        addresses[0], addresses[1],
        "memory is kept from step to step"
    );
    assert_eq!(gradients.memory_bytes(), 200);
    assert_eq!(
        gradients.timers().unswapped_read_gradients.snapshot().count,
        2
    );
}

#[test]
fn mixed_types_are_kept_in_f32() {
    let third = 1.0_f32 / 3.0;
    for place in ["disk", "memory"] {
        let options = options(&[("gradients", place)]);
        let engine = engine("memory");
        let gradients = Gradients::with_limits(&engine, &options, c"/nowhere", SMALL);
        let numel = 8000;
        gradients
            .take(0, numel, 0, &source(&[1.0; 5000], Dtype::Bf16, false, 0))
            .unwrap();
        gradients
            .take(0, numel, 2500, &source(&[third; 5000], Dtype::F32, true, 0))
            .unwrap();
        let mut expected = vec![0.0; numel];
        expected[..2500].fill(1.0);
        expected[2500..5000].fill(1.0 + third);
        expected[5000..7500].fill(third);
        let lent = gradients.lend(0).unwrap().unwrap();
        assert_eq!(lent.gradient.dtype, Dtype::F32);
        gradients.give_back(lent, true);
        assert!(
            gradients.seen(0, Dtype::F32).unwrap() == expected,
            "{place}"
        );

        // The next step has one type again.
        gradients
            .take(0, numel, 0, &source(&[third; 10], Dtype::Bf16, false, 0))
            .unwrap();
        let lent = gradients.lend(0).unwrap().unwrap();
        assert_eq!(lent.gradient.dtype, Dtype::Bf16);
        gradients.give_back(lent, false);
    }
}

#[test]
fn the_norm_is_the_same_wherever_the_values_lie() {
    let values = ramp(20_000, 3);
    let mut norms = Vec::new();
    for place in ["memory", "disk"] {
        let options = options(&[("gradients", place)]);
        let engine = engine("memory");
        let gradients = Gradients::with_limits(&engine, &options, c"/nowhere", SMALL);
        let mut with_holes = values.clone();
        with_holes[17] = f32::INFINITY;
        with_holes[9000] = f32::NAN;
        gradients
            .take(0, 20_001, 1, &source(&with_holes, Dtype::F32, false, 0))
            .unwrap();
        norms.push(gradients.norm(0).unwrap());
    }
    assert_eq!(norms[0].nonfinite_count, 2);
    assert_eq!(norms[0], norms[1]);
    let finite = |at: &usize| *at != 17 && *at != 9000;
    let square = |at: usize| f64::from(values[at]) * f64::from(values[at]);
    let expected: f64 = (0..values.len()).filter(finite).map(square).sum();
    assert!((norms[0].sum_of_squares - expected).abs() < expected * 1e-12);
}

#[test]
fn a_bad_list_is_refused_whole() {
    let gradients = Gradients::new(&engine("memory"), &options(&[]), c"/nowhere");
    let good = source(&[1.0; 4], Dtype::F32, false, 0);
    let mut bad = source(&[1.0; 4], Dtype::F32, false, 0);
    let refused = |offsets: &[u64], tensors: &[Tensor]| {
        let error = gradients.swap_out(3, 33, 10, offsets, tensors).unwrap_err();
        assert!(error.to_string().contains("33"), "{error}");
        error.status()
    };
    let invalid = Status::InvalidArgument;
    assert_eq!(refused(&[0], &[good.tensor, good.tensor]), invalid);
    assert_eq!(refused(&[0, 7], &[good.tensor, good.tensor]), invalid);
    assert_eq!(
        refused(&[0, u64::MAX], &[good.tensor, good.tensor]),
        invalid
    );
    bad.tensor.dtype = Dtype::I32;
    let mismatch = Status::DtypeMismatch;
    assert_eq!(refused(&[0, 4], &[good.tensor, bad.tensor]), mismatch);
    assert!(gradients.lend(3).unwrap().is_none(), "nothing was taken");
    assert_eq!(gradients.memory_bytes(), 0);
}

#[test]
fn a_lent_gradient_is_busy_and_a_discard_meanwhile_ends_it() {
    let gradients = Gradients::new(&engine("memory"), &options(&[]), c"/nowhere");
    let piece = source(&[1.0; 4], Dtype::F32, false, 0);
    gradients.take(3, 10, 0, &piece).unwrap();
    let lent = gradients.lend(3).unwrap().unwrap();
    for error in [
        gradients.lend(3).unwrap_err(),
        gradients.norm(3).unwrap_err(),
        gradients.take(3, 10, 0, &piece).unwrap_err(),
    ] {
        assert_eq!(error.status(), Status::Busy);
        assert!(error.to_string().contains('3'), "{error}");
    }
    gradients.discard(3);
    gradients.give_back(lent, true);
    assert!(gradients.lend(3).unwrap().is_none());
    gradients.take(3, 10, 0, &piece).unwrap();
    assert!(gradients.seen(3, Dtype::F32).is_some());
}

#[test]
fn several_threads_see_spilled_gradients_and_share_few_buffers() {
    const NUMEL: usize = 10_000;
    let directory = tempfile::tempdir_in(".").unwrap();
    let options = options(&[("gradients", "disk")]);
    let scratch = c_path(directory.path());
    let engine = engine("auto");
    let gradients = Gradients::with_limits(&engine, &options, &scratch, SMALL);
    for id in 0..12 {
        let values = ramp(NUMEL, id as usize);
        let piece = source(&values, Dtype::F32, false, 0);
        gradients.take(id, NUMEL, 0, &piece).unwrap();
    }
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let gradients = &gradients;
            scope.spawn(move || {
                for id in (0..12).filter(|id| id % 3 == thread) {
                    let seen = gradients.seen(id, Dtype::F32).unwrap();
                    assert!(seen == ramp(NUMEL, id as usize), "{id}");
                }
            });
        }
    });
    let last = gradients.lend(0).unwrap();
    assert!(last.is_none());
    assert!((1..=3).contains(&gradients.free_rooms_count()));
}

#[test]
fn a_failed_write_comes_out_of_flush_and_of_the_view_with_the_id() {
    let directory = tempfile::tempdir_in(".").unwrap();
    let plan = FaultPlan {
        seed: 1,
        enospc_per_mille: 1000,
        ..FaultPlan::default()
    };
    let engine = Engine::with_faults(&Config::new(), plan).unwrap();
    let options = options(&[("gradients", "disk")]);
    let scratch = c_path(directory.path());
    let gradients = Gradients::with_limits(&engine, &options, &scratch, SMALL);
    let piece = source(&[1.0; 5000], Dtype::F32, false, 0);
    gradients.take(4711, 5000, 0, &piece).unwrap();
    let error = gradients.flush().unwrap_err();
    assert_eq!(error.status(), Status::NoSpace);
    assert!(
        error.to_string().contains("gradient of parameter 4711"),
        "{error}"
    );
    assert_eq!(gradients.flush(), Ok(()));

    let mut lent = gradients.lend(4711).unwrap().unwrap();
    let error = lent.view(Dtype::F32).unwrap_err();
    assert!(
        error.to_string().contains("gradient of parameter 4711"),
        "{error}"
    );
    gradients.give_back(lent, true);
    let error = gradients.norm(4711).unwrap_err();
    assert!(
        error.to_string().contains("gradient of parameter 4711"),
        "{error}"
    );
}

#[test]
fn auto_keeps_what_fits_the_budget_in_memory() {
    let keys = [("gradients", "auto"), ("gradient_bytes", "50000")];
    let engine = engine("memory");
    let gradients = Gradients::with_limits(&engine, &options(&keys), c"/nowhere", SMALL);
    for id in 0..4 {
        let piece = source(&ramp(5000, 0), Dtype::F32, false, 0);
        gradients.take(id, 5000, 0, &piece).unwrap();
    }
    assert_eq!(gradients.memory_bytes(), 40_000);
    assert_eq!(gradients.spilled_bytes(), 40_000);
    // One that is too short for a file of its own stays in memory all the same.
    let short = source(&ramp(1000, 0), Dtype::F32, false, 0);
    gradients.take(9, 1000, 0, &short).unwrap();
    assert_eq!(gradients.memory_bytes(), 44_000);
    for id in 0..4 {
        assert!(gradients.seen(id, Dtype::F32).unwrap() == ramp(5000, 0));
    }
}
