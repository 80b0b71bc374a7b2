//! Properties of plans and headers, files that cannot be made, and any bytes.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::header::Header;
use super::partial::Partials;
use super::plan::{Entry, Plan};
use super::{read_any_header, read_any_index};
use crate::base::dtype::Dtype;
use crate::base::error::{Error, Status};

fn metadata() -> BTreeMap<&'static str, String> {
    BTreeMap::from([("format", "pt".to_owned())])
}

fn entries(sizes: &[(usize, u64)]) -> Vec<Entry> {
    let entry = |(index, (dtype, numel)): (usize, &(usize, u64))| Entry {
        name: format!("tensor \"{index}\" ü"),
        dtype: Dtype::ALL[dtype % Dtype::ALL.len()],
        numel: *numel,
    };
    sizes.iter().enumerate().map(entry).collect()
}

fn header_of(bytes: &[u8], file_bytes: u64) -> Header {
    let prefix = *bytes.first_chunk().unwrap();
    assert_eq!(
        Header::len_bytes(prefix, file_bytes),
        Ok(bytes.len() as u64 - 8)
    );
    Header::parse(&bytes[8..], file_bytes).unwrap()
}

proptest! {
    #[test]
    fn every_tensor_is_planned_once_aligned_and_where_its_header_says(
        sizes in vec((0..16_usize, 1..500_u64), 0..40),
        shard_bytes_max in 0..3000_u64,
    ) {
        let plan = Plan::new("m.safetensors", entries(&sizes), &metadata(), shard_bytes_max).unwrap();
        prop_assert_eq!(plan.index.is_some(), plan.files.len() > 1);
        let mut next = 0;
        for file in &plan.files {
            prop_assert_eq!(file.entries.start, next);
            next = file.entries.end;
            let header = header_of(&file.header, file.len_bytes);
            let own = &plan.entries[file.entries.clone()];
            let bytes: u64 = own.iter().map(|entry| entry.len_bytes().unwrap()).sum();
            prop_assert!(shard_bytes_max == 0 || bytes <= shard_bytes_max || own.len() == 1);
            prop_assert_eq!(file.len_bytes, file.header.len() as u64 + bytes);
            let mut positions = file.sections;
            for entry in own {
                let found = header.find(&entry.name).unwrap();
                let size = entry.dtype.size_bytes();
                prop_assert_eq!(found.file_offset % size, 0);
                prop_assert_eq!(found.file_offset, positions[entry.section()]);
                prop_assert_eq!(found.numel, entry.numel);
                let dtype = if entry.dtype == Dtype::Bytes { Dtype::U8 } else { entry.dtype };
                prop_assert_eq!(found.dtype, Ok(dtype));
                positions[entry.section()] += entry.len_bytes().unwrap();
            }
        }
        prop_assert_eq!(next, sizes.len());
    }

    #[test]
    fn a_header_that_was_changed_is_refused_or_right(
        sizes in vec((0..16_usize, 1..50_u64), 1..4),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let plan = Plan::new("m", entries(&sizes), &metadata(), 0).unwrap();
        let file = &plan.files[0];
        let mut bytes = file.header.clone();
        bytes.resize(usize::try_from(file.len_bytes).unwrap(), 0);
        read_any_header(&bytes);
        for (at, byte) in changes {
            let at = at.index(file.header.len());
            bytes[at] = byte;
        }
        read_any_header(&bytes);
        bytes.truncate(bytes.len() / 2);
        read_any_header(&bytes);
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in vec(any::<u8>(), 0..200), file in "\\PC{0,12}") {
        read_any_header(&bytes);
        read_any_index(&bytes);
        read_any_index(serde_json::json!({ "weight_map": { "a": file } }).to_string().as_bytes());
    }
}

#[test]
fn what_would_be_too_large_is_refused() {
    for sizes in [
        &[(14, 1 << 62)][..],
        &[(11, 1 << 62), (11, 1 << 62), (11, 1 << 62), (11, 1 << 62)],
    ] {
        let refused = Plan::new("m", entries(sizes), &metadata(), 0).unwrap_err();
        assert_eq!(refused.status(), Status::InvalidArgument);
    }
}

#[test]
fn a_file_without_space_leaves_nothing() {
    let shared_memory = std::path::Path::new("/dev/shm");
    let Ok(place) = tempfile::tempdir_in(shared_memory) else {
        return;
    };
    let mut partials = Partials::new(place.path()).unwrap();
    partials.add("first", 5000).unwrap();
    // More than any machine has: tmpfs refuses it at once.
    let refused = partials.add("second", 1 << 50).unwrap_err();
    assert!(matches!(&refused, Error::Io(_)), "{refused}");
    drop(partials);
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);

    let mut partials = Partials::new(place.path()).unwrap();
    partials.add("first", 5000).unwrap();
    partials.add_whole("second", b"content").unwrap();
    assert!(!place.path().join("first").exists());
    // What cannot be renamed takes the others with it.
    std::fs::create_dir(place.path().join("first")).unwrap();
    assert_eq!(
        partials.publish().unwrap_err().status(),
        Status::InvalidArgument
    );
    let left: Vec<_> = std::fs::read_dir(place.path()).unwrap().collect();
    assert_eq!(left.len(), 1);
}
