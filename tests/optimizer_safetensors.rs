//! States exported as safetensors are read by others' reader bit for bit, whatever the types, shards and
//! cache; masters taken from such files are what is in them; and what cannot be exported or read is told
//! and leaves nothing behind.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    reason = "a test"
)]

mod support;
mod training;

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype as FileDtype, SafeTensors};
use support::*;
use tensorswap::base::dtype::Dtype;
use tensorswap::base::error::{Error, Status};
use tensorswap::io::{Engine, FaultPlan};
use tensorswap::optimizer::Optimizer;
use tensorswap::store::StoreReader;
use training::*;

/// Type and bytes of tensors by name.
type Tensors = BTreeMap<String, (FileDtype, Vec<u8>)>;

/// A tensor of a file that is made for a test.
type Given<'a> = (&'a str, FileDtype, &'a [usize], &'a [u8]);

fn file_dtype(dtype: Dtype) -> FileDtype {
    match dtype {
        Dtype::F32 => FileDtype::F32,
        Dtype::F16 => FileDtype::F16,
        Dtype::Bf16 => FileDtype::BF16,
        other => panic!("{}", other.name()),
    }
}

/// The names in a directory.
fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name();
    let mut names: Vec<String> = entries
        .map(name)
        .map(|name| name.into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// What a file holds, by the reader of others; and its metadata.
fn read_file(path: &Path, into: &mut Tensors) -> BTreeMap<String, String> {
    let bytes = std::fs::read(path).unwrap();
    let mode = path.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "{}", path.display());
    let (header_bytes, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    for (name, view) in SafeTensors::deserialize(&bytes).unwrap().iter() {
        let start = view.data().as_ptr().addr() - bytes.as_ptr().addr();
        let size = view.dtype().bitsize() / 8;
        assert_eq!(
            start % size,
            0,
            "{name} is not aligned behind {header_bytes}"
        );
        assert_eq!(view.shape(), [view.data().len() / size]);
        let tensor = (view.dtype(), view.data().to_vec());
        assert!(into.insert(name.to_owned(), tensor).is_none(), "{name}");
    }
    metadata.metadata().clone().unwrap().into_iter().collect()
}

/// What an export holds, and in how many files, which are all that is in its directory.
fn read_export(directory: &Path, step: u64) -> (Tensors, usize) {
    let (mut tensors, names) = (Tensors::new(), names(directory));
    let index: Vec<&String> = names
        .iter()
        .filter(|name| name.ends_with(".json"))
        .collect();
    let files: Vec<&String> = names
        .iter()
        .filter(|name| !name.ends_with(".json"))
        .collect();
    for file in &files {
        let before: Vec<String> = tensors.keys().cloned().collect();
        let metadata = read_file(&directory.join(file), &mut tensors);
        assert_eq!(metadata["format"], "pt");
        assert_eq!(metadata["step"], step.to_string());
        assert_eq!(metadata["tensorswap"], env!("CARGO_PKG_VERSION"));
        if let [index] = index.as_slice() {
            let json = std::fs::read(directory.join(index)).unwrap();
            let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
            for name in tensors.keys().filter(|name| !before.contains(name)) {
                assert_eq!(json["weight_map"][name], **file);
            }
        }
    }
    match (files.as_slice(), index.as_slice()) {
        ([file], []) => assert_eq!(*file, "model.safetensors"),
        (files, [index]) => {
            assert_eq!(*index, "model.safetensors.index.json");
            let count = files.len();
            for (number, file) in (1..).zip(files) {
                assert_eq!(
                    **file,
                    format!("model-{number:05}-of-{count:05}.safetensors")
                );
            }
            let json = std::fs::read(directory.join(index)).unwrap();
            let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
            let total: usize = tensors.values().map(|(_, bytes)| bytes.len()).sum();
            assert_eq!(json["metadata"]["total_size"], total);
            assert_eq!(json["weight_map"].as_object().unwrap().len(), tensors.len());
        }
        other => panic!("{other:?}"),
    }
    (tensors, files.len())
}

/// What an export of a model is to hold.
fn expected(model: &Model) -> Tensors {
    let mut tensors = Tensors::new();
    for (id, record) in &model.records {
        for (state, (name, _, disk)) in model.types.iter().enumerate() {
            let key = match state {
                0 => format!("p{id}"),
                _ => format!("p{id}.{name}"),
            };
            let bytes = to_bytes(&record.states[state], *disk);
            tensors.insert(key, (file_dtype(*disk), bytes));
        }
    }
    tensors
}

fn model_of(types: &[State], numels: &[usize]) -> Model {
    let mut model = Model::new(types);
    (0..)
        .zip(numels)
        .for_each(|(id, numel)| model.add(id, *numel));
    model
}

fn train(optimizer: &Optimizer, model: &mut Model, skips: &(dyn Fn(u64) -> bool + Sync)) {
    let ids: Vec<u64> = model.records.keys().copied().collect();
    let dtype = model.types[0].1;
    for id in ids {
        let slope = rounded(
            &values(model.records[&id].numel, model.step * 100 + id),
            dtype,
        );
        give_gradient(optimizer, model, id, 0, (&slope, dtype), false);
    }
    step(optimizer, model, None, 1, skips);
}

fn status<T>(outcome: Result<T, Error>) -> (Status, String) {
    let error = outcome.err().unwrap();
    (error.status(), error.to_string())
}

/// A small store, with masters.
fn small(engine: &Engine, directory: &Path) -> (Optimizer, Model) {
    let mut model = model_of(&BF16_MOMENTS, &[5, 1000, 70_001]);
    let optimizer = open(engine, directory, &[], &model);
    initialize(&optimizer, &mut model, 1);
    (optimizer, model)
}

fn make_file(path: &Path, tensors: &[Given<'_>]) {
    let mut views = Vec::new();
    for (name, dtype, shape, data) in tensors {
        views.push((
            *name,
            TensorView::new(*dtype, shape.to_vec(), data).unwrap(),
        ));
    }
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

#[test]
fn what_is_exported_is_what_the_store_holds_for_all_types_shards_caches_and_settings() {
    for seed in 0..10 * scale() {
        let mut random = Random(seed);
        let types = *random.pick(&[F32, BF16_MOMENTS, F16, MIXED]);
        let longest = *random.pick(&[9, 3000, 40_000]);
        let numels: Vec<usize> = (0..1 + random.below(12))
            .map(|_| 1 + random.below(longest))
            .collect();
        let settings = [
            ("backend", *random.pick(&["auto", "threads", "memory"])),
            ("sync", *random.pick(&["none", "commit"])),
            ("pipeline_read", *random.pick(&["true", "false"])),
            ("read_ahead", *random.pick(&["0", "1"])),
            ("cache_bytes", *random.pick(&["0", "100KiB", "1GiB"])),
            ("checksum", *random.pick(&["off", "verify"])),
        ];
        let context = format!("seed {seed}: {settings:?} {types:?} {numels:?}");
        let (store, engine) = (directory(), engine(&settings[..1]));
        let mut model = model_of(&types, &numels);
        let optimizer = open(&engine, store.path(), &settings, &model);
        initialize(&optimizer, &mut model, seed);
        let total: usize = expected(&model)
            .values()
            .map(|(_, bytes)| bytes.len())
            .sum();
        for round in 0..2 {
            let target = directory();
            let file = target.path().join("model.safetensors");
            let shard_bytes_max = match random.below(3) {
                0 => 0,
                1 => 1 + random.below(total),
                _ => total - 1 + random.below(3),
            };
            optimizer
                .export_safetensors(&file, shard_bytes_max as u64)
                .unwrap_or_else(|error| panic!("{context}: {error}"));
            let (found, files) = read_export(target.path(), model.step);
            assert!(found == expected(&model), "{context} round {round}");
            assert_eq!(
                files == 1,
                shard_bytes_max == 0 || total <= shard_bytes_max || files == 1
            );
            // The store goes on as if nothing had been, changed in part and committed in part.
            verify(&optimizer, &model, &context);
            train(&optimizer, &mut model, &|id| (id + round) % 3 == 0);
            if round == 0 {
                optimizer.commit().unwrap();
            }
        }
    }
}

#[test]
fn shards_are_cut_between_tensors_at_every_boundary() {
    let (store, engine) = (directory(), engine(&[]));
    let mut model = model_of(&BF16_MOMENTS, &[3, 1, 4, 1, 5]);
    let optimizer = open(&engine, store.path(), &[], &model);
    initialize(&optimizer, &mut model, 1);
    train(&optimizer, &mut model, &|_| false);
    let tensors = expected(&model);
    // In the order in which they are written.
    let mut lens = Vec::new();
    for id in model.records.keys() {
        for name in [
            format!("p{id}"),
            format!("p{id}.exp_avg"),
            format!("p{id}.exp_avg_sq"),
        ] {
            lens.push(tensors[&name].1.len());
        }
    }
    for shard_bytes_max in 1..=lens.iter().sum::<usize>() + 1 {
        let target = directory();
        let file = target.path().join("model.safetensors");
        optimizer
            .export_safetensors(&file, shard_bytes_max as u64)
            .unwrap();
        let (mut count, mut filled) = (1, 0);
        for len in &lens {
            if filled > 0 && filled + len > shard_bytes_max {
                (count, filled) = (count + 1, 0);
            }
            filled += len;
        }
        let (found, files) = read_export(target.path(), 1);
        assert_eq!(files, count, "{shard_bytes_max}");
        assert!(found == tensors, "{shard_bytes_max}");
    }
}

#[test]
fn an_export_initializes_another_store_whole_or_in_shards() {
    let engine = engine(&[]);
    let ways = [
        (F32, 0, 2_100_001),
        (BF16_MOMENTS, 100_000, 9),
        (F16, 1, 9),
        (MIXED, 0, 9),
    ];
    for (types, shard_bytes_max, longest) in ways {
        let (first, target, second) = (directory(), directory(), directory());
        let mut model = model_of(&types, &[1, 700, 70_001, longest]);
        let optimizer = open(&engine, first.path(), &[], &model);
        initialize(&optimizer, &mut model, 1);
        train(&optimizer, &mut model, &|_| false);
        let file = target.path().join("model.safetensors");
        optimizer
            .export_safetensors(&file, shard_bytes_max)
            .unwrap();
        let source = match shard_bytes_max {
            0 => file,
            _ => target.path().join("model.safetensors.index.json"),
        };
        let mut new = Model::new(&types);
        for (id, record) in &model.records {
            new.add(*id, record.numel);
        }
        let optimizer = open(&engine, second.path(), &[], &new);
        let ids: Vec<u64> = new.records.keys().copied().collect();
        optimizer
            .initialize_from_safetensors(&source, &ids, &[None; 4])
            .unwrap();
        for id in &ids {
            new.set(*id, 0, &model.records[id].states[0]);
        }
        verify(&optimizer, &new, "initialized");
        optimizer.commit().unwrap();
        drop(optimizer);
        let optimizer = open(&engine, second.path(), &[("store", "existing")], &new);
        verify(&optimizer, &new, "opened again");
    }
}

#[test]
fn masters_are_made_from_tensors_of_any_shape_and_narrow_type_by_their_names() {
    let (store, target) = (directory(), directory());
    let file = target.path().join("weights.safetensors");
    let given = values(24, 7);
    let narrow: [(_, Dtype); 2] = [(FileDtype::F16, Dtype::F16), (FileDtype::BF16, Dtype::Bf16)];
    let bytes = narrow.map(|(_, dtype)| to_bytes(&given, dtype));
    let whole = to_bytes(&given, Dtype::F32);
    make_file(
        &file,
        &[
            ("a", FileDtype::F32, &[24], &whole),
            ("b.weight", narrow[0].0, &[2, 3, 4], &bytes[0]),
            ("ü", narrow[1].0, &[1, 24, 1], &bytes[1]),
        ],
    );
    for backend in ["auto", "memory"] {
        let engine = engine(&[("backend", backend)]);
        let mut model = model_of(&F32, &[24, 24, 24, 24]);
        let optimizer = open(&engine, store.path(), &[("store", "new")], &model);
        let names = [Some("ü"), Some("a"), Some("b.weight"), Some("a")];
        optimizer
            .initialize_from_safetensors(&file, &[3, 0, 1, 2], &names)
            .unwrap();
        model.set(3, 0, &rounded(&given, Dtype::Bf16));
        model.set(0, 0, &given);
        model.set(1, 0, &rounded(&given, Dtype::F16));
        model.set(2, 0, &given);
        verify(&optimizer, &model, backend);
        optimizer
            .initialize_from_safetensors(&file, &[], &[])
            .unwrap();
    }
}

#[test]
fn what_does_not_fit_is_told_by_name_before_anything_changes() {
    let (store, target, engine) = (directory(), directory(), engine(&[]));
    let (optimizer, model) = small(&engine, store.path());
    let file = target.path().join("weights.safetensors");
    let (five, wide) = (to_bytes(&values(5, 1), Dtype::F32), [0; 40]);
    make_file(
        &file,
        &[
            ("five", FileDtype::F32, &[5], &five),
            ("wide", FileDtype::F64, &[5], &wide),
            ("numbers", FileDtype::I32, &[5], &five),
            ("packed", FileDtype::F4, &[10], &wide[..5]),
        ],
    );
    let attempt = |ids: &[u64], names: &[Option<&str>]| {
        status(optimizer.initialize_from_safetensors(&file, ids, names))
    };
    let cases = [
        (
            attempt(&[0], &[Some("wide")]),
            Status::DtypeMismatch,
            "tensor wide",
        ),
        (
            attempt(&[0], &[Some("numbers")]),
            Status::DtypeMismatch,
            "is i32",
        ),
        (
            attempt(&[0], &[Some("packed")]),
            Status::DtypeMismatch,
            "is F4",
        ),
        (
            attempt(&[0, 1], &[Some("five"), Some("none")]),
            Status::NotFound,
            "no tensor none",
        ),
        (
            attempt(&[0], &[None]),
            Status::NotFound,
            "weights.safetensors: ENOENT (it has no tensor p0)",
        ),
        (
            attempt(&[0, 1], &[Some("five"), Some("five")]),
            Status::SizeMismatch,
            "tensor five has 5 elements, and parameter 1 has 1000",
        ),
        (
            attempt(&[0, 0], &[Some("five"); 2]),
            Status::InvalidArgument,
            "parameter 0 is given twice",
        ),
        (
            attempt(&[9], &[Some("five")]),
            Status::UnknownParameter,
            "9",
        ),
        (
            attempt(&[0], &[]),
            Status::InvalidArgument,
            "one name for each",
        ),
    ];
    for ((status, message), expected, part) in cases {
        assert_eq!(status, expected, "{message}");
        assert!(message.contains(part), "{message}");
    }
    let missing = target.path().join("missing.safetensors");
    let outcome = optimizer.initialize_from_safetensors(&missing, &[0], &[None]);
    assert_eq!(status(outcome).0, Status::NotFound);
    let outcome = optimizer.initialize_from_safetensors(target.path(), &[0], &[None]);
    assert_eq!(status(outcome).0, Status::InvalidArgument);
    verify(&optimizer, &model, "nothing changed");
}

#[test]
fn files_that_are_damaged_or_none_are_refused() {
    let (store, target, engine) = (directory(), directory(), engine(&[]));
    let (optimizer, model) = small(&engine, store.path());
    let file = target.path().join("weights.safetensors");
    let five = to_bytes(&values(5, 1), Dtype::F32);
    let data: Vec<u8> = five.repeat(2);
    let whole = |json: &str, data: &[u8]| {
        let len = (json.len() as u64).to_le_bytes();
        [&len[..], json.as_bytes(), data].concat()
    };
    let tensor = |dtype: &str, shape: &str, start: u64, end: u64| {
        format!(r#"{{"dtype":"{dtype}","shape":[{shape}],"data_offsets":[{start},{end}]}}"#)
    };
    let one = tensor("F32", "5", 0, 20);
    let huge = u64::MAX.to_string();
    let hostile: Vec<(&str, Vec<u8>)> = vec![
        ("empty", vec![]),
        ("text", b"not a model at all, just text".to_vec()),
        ("shorter than a prefix", vec![1, 0, 0]),
        ("an absurd length", [&[0xff; 8][..], b"{}"].concat()),
        (
            "a length beyond the end",
            [&1000_u64.to_le_bytes()[..], b"{}"].concat(),
        ),
        ("no JSON", whole("{", &[])),
        ("no object", whole("[1]", &[])),
        ("deep", whole(&"[".repeat(100_000), &[])),
        (
            "no such type",
            whole(&format!(r#"{{"p0":{}}}"#, tensor("F33", "5", 0, 20)), &five),
        ),
        (
            "truncated",
            whole(&format!(r#"{{"p0":{one}}}"#), &five[..19]),
        ),
        ("longer", whole(&format!(r#"{{"p0":{one}}}"#), &data)),
        (
            "another size",
            whole(&format!(r#"{{"p0":{}}}"#, tensor("F32", "5", 0, 19)), &five),
        ),
        (
            "a hole",
            whole(
                &format!(r#"{{"p0":{}}}"#, tensor("F32", "5", 20, 40)),
                &data,
            ),
        ),
        (
            "an overlap",
            whole(
                &format!(r#"{{"p0":{one},"p1":{}}}"#, tensor("F32", "5", 16, 36)),
                &data,
            ),
        ),
        (
            "a name twice",
            whole(
                &format!(r#"{{"p0":{one},"p0":{}}}"#, tensor("F32", "5", 20, 40)),
                &data,
            ),
        ),
        (
            "a product that wraps",
            whole(
                &format!(
                    r#"{{"p0":{}}}"#,
                    tensor("F32", &format!("{huge},{huge}"), 0, 20)
                ),
                &five,
            ),
        ),
        (
            "backwards",
            whole(&format!(r#"{{"p0":{}}}"#, tensor("F32", "5", 20, 0)), &five),
        ),
        (
            "beyond all offsets",
            whole(
                &format!(r#"{{"p0":{{"dtype":"U8","shape":[{huge}],"data_offsets":[0,{huge}]}}}}"#),
                &five,
            ),
        ),
        (
            "negative",
            whole(
                r#"{"p0":{"dtype":"F32","shape":[-5],"data_offsets":[0,20]}}"#,
                &five,
            ),
        ),
    ];
    for (what, bytes) in &hostile {
        std::fs::write(&file, bytes).unwrap();
        let outcome = optimizer.initialize_from_safetensors(&file, &[0], &[None]);
        let (status, message) = status(outcome);
        assert_eq!(status, Status::Corrupt, "{what}: {message}");
        assert!(message.contains("weights.safetensors"), "{what}: {message}");
    }
    // Every bit of a header matters or changes a name; no flip reads what is not there.
    let good = whole(&format!(r#"{{"p0":{one}}}"#), &five);
    for bit in 0..8 * (good.len() - five.len()) {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&file, &bytes).unwrap();
        let outcome = optimizer.initialize_from_safetensors(&file, &[0], &[None]);
        if let Err(error) = outcome {
            let known = [Status::Corrupt, Status::NotFound, Status::DtypeMismatch];
            assert!(known.contains(&error.status()), "bit {bit}: {error}");
            continue;
        }
        panic!("bit {bit} went unnoticed");
    }
    verify(&optimizer, &model, "nothing changed");
}

#[test]
fn an_index_leads_to_files_beside_it_and_nowhere_else() {
    let (store, target, engine) = (directory(), directory(), engine(&[]));
    let (optimizer, model) = small(&engine, store.path());
    let index = target.path().join("model.safetensors.index.json");
    let five = to_bytes(&values(5, 1), Dtype::F32);
    make_file(
        &target.path().join("a"),
        &[("p0", FileDtype::F32, &[5], &five)],
    );
    std::fs::create_dir(target.path().join("inner")).unwrap();
    make_file(
        &target.path().join("inner/a"),
        &[("p0", FileDtype::F32, &[5], &five)],
    );
    let absolute = target.path().join("a");
    let map = |file: &str| format!(r#"{{"weight_map":{{"p0":{}}}}}"#, serde_json::json!(file));
    let refused = [
        (map("inner/a"), Status::Corrupt),
        (map("../a"), Status::Corrupt),
        (map(absolute.to_str().unwrap()), Status::Corrupt),
        (map(".."), Status::Corrupt),
        (map(""), Status::Corrupt),
        (map("a\0"), Status::Corrupt),
        (map("missing"), Status::NotFound),
        (map("inner"), Status::InvalidArgument),
        (r#"{"weight_map":{"p1":"a"}}"#.to_owned(), Status::NotFound),
        (r#"{"weight_map":{"p0":7}}"#.to_owned(), Status::Corrupt),
        (r#"{"weight_map":["a"]}"#.to_owned(), Status::Corrupt),
        (r#"{"metadata":{}}"#.to_owned(), Status::Corrupt),
        ("[]".to_owned(), Status::Corrupt),
        ("[".repeat(100_000), Status::Corrupt),
        (String::new(), Status::Corrupt),
    ];
    for (json, expected) in &refused {
        std::fs::write(&index, json).unwrap();
        let outcome = optimizer.initialize_from_safetensors(&index, &[0], &[None]);
        let (status, message) = status(outcome);
        assert_eq!(status, *expected, "{message}");
    }
    // A file that lacks what the index says it has.
    std::fs::write(&index, r#"{"weight_map":{"p1":"a"}}"#).unwrap();
    let outcome = optimizer.initialize_from_safetensors(&index, &[1], &[None]);
    assert_eq!(status(outcome).0, Status::Corrupt);
    verify(&optimizer, &model, "nothing changed");
    std::fs::write(&index, map("a")).unwrap();
    optimizer
        .initialize_from_safetensors(&index, &[0], &[None])
        .unwrap();
}

#[test]
fn an_export_needs_names_that_differ_and_all_parameters_in() {
    let (store, target, engine) = (directory(), directory(), engine(&[]));
    let file = target.path().join("model.safetensors");
    let settings = [("store", "new")];
    let types = &F32;
    let cases: [(&[Option<&str>], &str); 4] = [
        (
            &[Some("a"), Some("b"), Some("a")],
            "master of parameter 0 and master of parameter 2 would both be named a",
        ),
        (&[Some("a.exp_avg"), Some("a")], "both be named a.exp_avg"),
        (&[None, Some("parameter.0")], "both be named parameter.0"),
        (&[Some("__metadata__")], "named __metadata__, which is kept"),
    ];
    for (names, part) in cases {
        let optimizer = try_open(&engine, store.path(), &settings, types).unwrap();
        for (id, name) in (0..).zip(names) {
            optimizer.add_parameter(id, *name, 10).unwrap();
        }
        let (status, message) = status(optimizer.export_safetensors(&file, 0));
        assert_eq!(status, Status::InvalidArgument, "{message}");
        assert!(message.contains(part), "{message}");
    }
    let (optimizer, mut model) = small(&engine, target.path());
    optimizer.step_begin(None).unwrap();
    assert_eq!(
        status(optimizer.export_safetensors(&file, 0)).0,
        Status::Busy
    );
    let outcome = optimizer.initialize_from_safetensors(&file, &[0], &[None]);
    assert_eq!(status(outcome).0, Status::Busy);
    optimizer.step_abort().unwrap();
    optimizer.swap_in_state(1, None).unwrap();
    assert_eq!(
        status(optimizer.export_safetensors(&file, 0)).0,
        Status::Busy
    );
    optimizer.release_state(1).unwrap();
    let before = names_of_tree(target.path());
    // Where the name is a directory's, or nobody's, or there is no directory.
    std::fs::create_dir(&file).unwrap();
    assert_eq!(
        status(optimizer.export_safetensors(&file, 0)).0,
        Status::InvalidArgument
    );
    std::fs::remove_dir(&file).unwrap();
    for path in ["", "/", "..", "missing/model.safetensors"] {
        let path = target.path().join(path);
        let path = if path.ends_with("..") {
            Path::new("..")
        } else {
            &path
        };
        if path != target.path() {
            assert!(
                optimizer.export_safetensors(path, 0).is_err(),
                "{}",
                path.display()
            );
        }
    }
    assert_eq!(names_of_tree(target.path()), before);
    train(&optimizer, &mut model, &|_| false);
    // In place of what is there, also of a link, which is not followed.
    std::fs::write(target.path().join("kept"), b"kept").unwrap();
    std::os::unix::fs::symlink("kept", &file).unwrap();
    optimizer.export_safetensors(&file, 0).unwrap();
    assert_eq!(std::fs::read(target.path().join("kept")).unwrap(), b"kept");
    let mut found = Tensors::new();
    read_file(&file, &mut found);
    assert!(found == expected(&model));
}

fn names_of_tree(directory: &Path) -> Vec<String> {
    let mut names = names(directory);
    names.retain(|name| name != "rank0");
    names
}

#[test]
fn parameters_without_names_and_zeros_are_exported_and_a_new_export_replaces_the_old_one() {
    let (store, target, engine) = (directory(), directory(), engine(&[]));
    let optimizer = try_open(&engine, store.path(), &[], &BF16_MOMENTS).unwrap();
    for id in [7, 3] {
        optimizer.add_parameter(id, None, 3_000_000).unwrap();
    }
    let file = target.path().join("model.safetensors");
    for shard_bytes_max in [0, 1, 20_000_000, 1] {
        optimizer
            .export_safetensors(&file, shard_bytes_max)
            .unwrap();
        // What is left of another layout is not this one's.
        for name in names(target.path()) {
            assert!(!name.ends_with(".partial"), "{name}");
        }
    }
    for name in names(target.path())
        .iter()
        .filter(|name| !name.contains("of-00006"))
    {
        if !name.ends_with(".json") {
            std::fs::remove_file(target.path().join(name)).unwrap();
        }
    }
    let (found, files) = read_export(target.path(), 0);
    assert_eq!(files, 6);
    let names: Vec<&str> = found.keys().map(String::as_str).collect();
    let expected = [
        "3",
        "3.exp_avg",
        "3.exp_avg_sq",
        "7",
        "7.exp_avg",
        "7.exp_avg_sq",
    ];
    assert_eq!(names, expected.map(|name| format!("parameter.{name}")));
    assert!(
        found
            .values()
            .all(|(_, bytes)| bytes.iter().all(|byte| *byte == 0))
    );
}

#[test]
fn two_exports_of_one_name_do_not_mix_and_what_a_dead_one_left_is_replaced() {
    let (store, target, engine) = (directory(), directory(), engine(&[]));
    let (optimizer, model) = small(&engine, store.path());
    let file = target.path().join("model.safetensors");
    let partial = target.path().join("model.safetensors.partial");
    let elsewhere = target.path().join("elsewhere");
    std::fs::write(&elsewhere, vec![7; 3_000_000]).unwrap();
    std::fs::hard_link(&elsewhere, &partial).unwrap();
    let other = std::fs::File::open(&partial).unwrap();
    tensorswap::sys::lock_exclusive(other.as_fd()).unwrap();
    let (status, message) = status(optimizer.export_safetensors(&file, 0));
    assert_eq!(status, Status::Locked, "{message}");
    assert_eq!(partial.metadata().unwrap().len(), 3_000_000);
    drop(other);
    // A link in its place is refused, and not followed.
    std::fs::remove_file(&partial).unwrap();
    std::os::unix::fs::symlink("elsewhere", &partial).unwrap();
    assert!(optimizer.export_safetensors(&file, 0).is_err());
    assert_eq!(elsewhere.metadata().unwrap().len(), 3_000_000);
    std::fs::remove_file(&partial).unwrap();
    std::fs::hard_link(&elsewhere, &partial).unwrap();
    optimizer.export_safetensors(&file, 0).unwrap();
    assert_eq!(std::fs::read(&elsewhere).unwrap(), vec![7; 3_000_000]);
    std::fs::remove_file(&elsewhere).unwrap();
    let (found, _) = read_export(target.path(), 0);
    assert!(found == expected(&model));
}

#[test]
fn an_export_never_takes_the_place_of_a_device() {
    let (store, target) = (directory(), directory());
    let (optimizer, model) = small(&engine(&[]), store.path());
    let file = target.path().join("model.safetensors");
    for (name, shard_bytes_max) in [
        ("model.safetensors", 0),
        ("model-00002-of-00009.safetensors", 1),
        ("model.safetensors.index.json", 1),
    ] {
        // What other programs need as they need a device.
        let socket = target.path().join(name);
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let (status, message) = status(optimizer.export_safetensors(&file, shard_bytes_max));
        assert_eq!(status, Status::Unsupported, "{message}");
        assert!(message.contains(name), "{message}");
        assert_eq!(names(target.path()), [name]);
        std::fs::remove_file(&socket).unwrap();
    }
    optimizer.export_safetensors(&file, 0).unwrap();
    let (found, _) = read_export(target.path(), 0);
    assert!(found == expected(&model));
}

#[test]
fn an_export_that_fails_leaves_nothing_and_the_store_as_it_was() {
    let store = directory();
    let mut model = model_of(&BF16_MOMENTS, &[5, 70_001, 1, 900_000, 2000]);
    let optimizer = open(&engine(&[]), store.path(), &[], &model);
    initialize(&optimizer, &mut model, 1);
    train(&optimizer, &mut model, &|_| false);
    optimizer.commit().unwrap();
    drop(optimizer);
    let mut outcomes = BTreeMap::new();
    for seed in 0..40 * scale() {
        let plan = FaultPlan {
            seed,
            eio_per_mille: if seed % 4 == 1 { 15 } else { 0 },
            enospc_per_mille: if seed % 4 == 2 { 25 } else { 0 },
            short_per_mille: 100,
            delay_per_mille: 100,
            metadata_per_mille: if seed % 4 == 3 { 100 } else { 0 },
            refuse_reserve: seed % 3 == 0,
            ..FaultPlan::default()
        };
        let engine = Engine::with_faults(&config(&[("block_bytes", "64KiB")]), plan).unwrap();
        let optimizer = open(&engine, store.path(), &[("store", "existing")], &model);
        let target = directory();
        let file = target.path().join("model.safetensors");
        let outcome = optimizer.export_safetensors(&file, if seed % 5 == 0 { 200_000 } else { 0 });
        match &outcome {
            Ok(()) => assert!(
                read_export(target.path(), 1).0 == expected(&model),
                "{seed}"
            ),
            Err(error) => {
                let known = [Status::Io, Status::NoSpace, Status::Permission];
                assert!(known.contains(&error.status()), "{seed}: {error}");
                assert_eq!(names(target.path()), [""; 0], "{seed}: {error}");
            }
        }
        let status = outcome.as_ref().map_or_else(Error::status, |()| Status::Ok);
        *outcomes.entry(status as i32).or_insert(0) += 1;
        // What could not be read can be, once storage is well again.
        drop(optimizer);
    }
    let all = [Status::Ok, Status::Io, Status::NoSpace].map(|status| status as i32);
    assert!(
        all.iter().all(|status| outcomes.contains_key(status)),
        "{outcomes:?}"
    );
    let engine = engine(&[]);
    verify(
        &open(&engine, store.path(), &[], &model),
        &model,
        "after all",
    );
}

#[test]
fn no_export_begins_where_nothing_may_be_written() {
    let (store, engine) = (directory(), engine(&[]));
    let (optimizer, model) = small(&engine, store.path());
    // A file system that takes no files, whoever asks.
    let outcome = optimizer.export_safetensors(Path::new("/proc/self/model.safetensors"), 0);
    let (status, message) = status(outcome);
    assert!(
        matches!(status, Status::NotFound | Status::Permission | Status::Io),
        "{message}"
    );
    verify(&optimizer, &model, "after it");
}

#[test]
fn a_store_without_parameters_is_exported_as_a_file_without_tensors() {
    let (store, target, engine) = (directory(), directory(), engine(&[]));
    let optimizer = try_open(&engine, store.path(), &[], &F32).unwrap();
    let file = target.path().join("model.safetensors");
    optimizer.export_safetensors(&file, 1).unwrap();
    assert_eq!(read_export(target.path(), 0), (Tensors::new(), 1));
    // Where there are some, and none was added, somebody forgot them.
    drop(optimizer);
    let (optimizer, _) = small(&engine, store.path());
    optimizer.commit().unwrap();
    drop(optimizer);
    let optimizer = try_open(&engine, store.path(), &[], &BF16_MOMENTS).unwrap();
    let (status, message) = status(optimizer.export_safetensors(&file, 0));
    assert_eq!(status, Status::InvalidArgument, "{message}");
}

#[test]
fn damage_in_the_store_is_told_and_nothing_is_exported() {
    use std::os::unix::fs::FileExt;
    let (store, target, engine) = (directory(), directory(), engine(&[]));
    let (optimizer, mut model) = small(&engine, store.path());
    train(&optimizer, &mut model, &|_| false);
    optimizer.commit().unwrap();
    drop(optimizer);
    let reader = StoreReader::open(&[store.path().join("rank0")]).unwrap();
    let offset = reader.parameters().nth(2).unwrap().offset_bytes.unwrap();
    let data = store.path().join("rank0/data");
    let file = std::fs::File::options().write(true).open(&data).unwrap();
    file.write_all_at(&[0x55; 64], offset + 100_000).unwrap();
    drop(file);
    let optimizer = open(&engine, store.path(), &[], &model);
    let path = target.path().join("model.safetensors");
    for _ in 0..2 {
        let (status, message) = status(optimizer.export_safetensors(&path, 0));
        assert_eq!(status, Status::Checksum, "{message}");
        assert!(message.contains("parameter 2"), "{message}");
        assert_eq!(names(target.path()), [""; 0]);
    }
    assert!(
        read_state(&optimizer, &model, 1, 0).is_ok(),
        "others are as they were"
    );
}
