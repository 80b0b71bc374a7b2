//! The table of keys: the one place that knows their names, defaults, legal values and meaning.

use super::engine::{BackendChoice, DirectIo, Policy};
use super::optimizer::{ChecksumMode, GradientPlace, GradientType, Rounding, StoreMode, SyncMode};
use super::parse::{Bounds, Kind};
use crate::base::units::{FILE_OFFSET_MAX, GIB};

/// The object that takes a key. The swapper takes none: its buffers are given by calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Object {
    /// The engine.
    Engine,
    /// The optimizer swapper.
    Optimizer,
}

impl Object {
    /// The name as the help texts spell it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Object::Engine => "engine",
            Object::Optimizer => "optimizer",
        }
    }
}

/// One key of the configuration.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// The name.
    pub name: &'static str,
    /// The value of a configuration in which nobody set the key, in its normal form.
    pub default: &'static str,
    /// One line: which object takes the key, and what it does.
    pub help: &'static str,
    /// The object that takes the key.
    pub object: Object,
    /// Which values are legal.
    pub kind: Kind,
}

/// Every key, the engine's first.
#[must_use]
pub fn keys() -> &'static [Key] {
    KEYS
}

/// The key with this name.
pub(super) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

const fn engine(name: &'static str, default: &'static str, kind: Kind, help: &'static str) -> Key {
    Key {
        name,
        default,
        help,
        object: Object::Engine,
        kind,
    }
}

const fn optimizer(
    name: &'static str,
    default: &'static str,
    kind: Kind,
    help: &'static str,
) -> Key {
    Key {
        name,
        default,
        help,
        object: Object::Optimizer,
        kind,
    }
}

/// Bytes of memory or of a file: from nothing to what a file offset can express.
const BYTES: Bounds = Bounds::new(0, FILE_OFFSET_MAX);

const KEYS: &[Key] = &[
    engine(
        "backend",
        "auto",
        Kind::Choice(BackendChoice::NAMES),
        "engine: who does the I/O; auto is io_uring, or the threads where the kernel refuses it; \
         memory keeps files in memory, for tests",
    ),
    engine(
        "queue_depth",
        "32",
        Kind::Count(Bounds::new(1, 4096)),
        "engine: operations in flight at once on one device",
    ),
    engine(
        "block_bytes",
        "1MiB",
        Kind::Size(Bounds::new(4096, GIB).multiple_of(4096)),
        "engine: largest operation; longer transfers are cut into blocks of this size",
    ),
    engine(
        "direct_io",
        "prefer",
        Kind::Choice(DirectIo::NAMES),
        "engine: transfer past the page cache; prefer falls back file by file where the file \
         system refuses, require fails there",
    ),
    engine(
        "threads",
        "8",
        Kind::Count(Bounds::new(1, 256)),
        "engine: threads of the threads backend, for each device",
    ),
    engine(
        "sqpoll",
        "false",
        Kind::Bool,
        "engine: let a kernel thread poll the ring's submissions; costs a core",
    ),
    engine(
        "pin",
        "prefer",
        Kind::Choice(Policy::NAMES),
        "engine: lock buffers in memory; prefer goes on unlocked where RLIMIT_MEMLOCK refuses",
    ),
    engine(
        "huge_pages",
        "prefer",
        Kind::Choice(Policy::NAMES),
        "engine: make buffers of 2 MiB pages; prefer takes smaller pages where there are none",
    ),
    engine(
        "register_buffers",
        "true",
        Kind::Bool,
        "engine: register buffers with the ring",
    ),
    engine(
        "tickets_max",
        "4096",
        Kind::Count(Bounds::new(1, 1_048_575)),
        "engine: tickets alive at once; beyond, a submission is refused as busy",
    ),
    engine(
        "open_files_max",
        "0",
        Kind::Count(Bounds::new(0, 1_048_576).zero_is_auto()),
        "engine: files kept open for reuse; 0 is half of RLIMIT_NOFILE, at most 16384",
    ),
    engine(
        "trace",
        "",
        Kind::File,
        "engine: file that receives a timeline of everything (Chrome trace format); {pid} in it is the process; empty for none",
    ),
    optimizer(
        "path",
        "",
        Kind::Directories,
        "optimizer: directory of the store, or several separated by commas, each with an \
         optional =weight",
    ),
    optimizer(
        "rank",
        "0",
        Kind::Count(Bounds::new(0, 0xffff_ffff)),
        "optimizer: number of this process; its store is rank<N> under path",
    ),
    optimizer(
        "store",
        "auto",
        Kind::Choice(StoreMode::NAMES),
        "optimizer: make a store or open one; new removes what was there, existing fails where \
         there is none",
    ),
    optimizer(
        "sync",
        "commit",
        Kind::Choice(SyncMode::NAMES),
        "optimizer: make every step durable in the background, or only an explicit commit",
    ),
    optimizer(
        "checksum",
        "verify",
        Kind::Choice(ChecksumMode::NAMES),
        "optimizer: keep checksums of records, and verify them at every swap-in",
    ),
    optimizer(
        "views_max",
        "2",
        Kind::Count(Bounds::new(1, 4096)),
        "optimizer: parameter views given out at once",
    ),
    optimizer(
        "pinned_bytes",
        "0",
        Kind::Size(BYTES.zero_is_auto()),
        "optimizer: budget of pinned memory besides cache_bytes; 0 takes what the pipeline needs",
    ),
    optimizer(
        "read_ahead",
        "0",
        Kind::Count(Bounds::new(0, 4096).zero_is_auto()),
        "optimizer: records read before they are asked for; 0 is as many as pinned_bytes allows",
    ),
    optimizer(
        "write_behind",
        "0",
        Kind::Count(Bounds::new(0, 4096).zero_is_auto()),
        "optimizer: records being written back at once; 0 is as many as pinned_bytes allows",
    ),
    optimizer(
        "pipeline_read",
        "true",
        Kind::Bool,
        "optimizer: read the next records while one is updated",
    ),
    optimizer(
        "pipeline_write",
        "true",
        Kind::Bool,
        "optimizer: write records back while the next one is updated",
    ),
    optimizer(
        "cache_bytes",
        "0",
        Kind::Size(BYTES),
        "optimizer: memory for records that stay resident between steps",
    ),
    optimizer(
        "gradients",
        "memory",
        Kind::Choice(GradientPlace::NAMES),
        "optimizer: where gradients wait for the step; auto spills what gradient_bytes cannot hold",
    ),
    optimizer(
        "gradient_bytes",
        "0",
        Kind::Size(BYTES.zero_is_auto()),
        "optimizer: memory for gradients when gradients=auto; 0 lets the optimizer choose",
    ),
    optimizer(
        "gradient_dtype",
        "auto",
        Kind::Choice(GradientType::NAMES),
        "optimizer: type in which gradients are kept until the step; auto is the type they come in",
    ),
    optimizer(
        "rounding",
        "nearest",
        Kind::Choice(Rounding::NAMES),
        "optimizer: rounding where a state's type on storage is the narrower one",
    ),
    optimizer(
        "seed",
        "0",
        Kind::Count(Bounds::new(0, u64::MAX)),
        "optimizer: seed of stochastic rounding",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_of_the_contract_is_here_once() {
        let mut names: Vec<_> = keys().iter().map(|key| key.name).collect();
        names.sort_unstable();
        let mut contract = "backend queue_depth block_bytes direct_io threads sqpoll pin \
             huge_pages register_buffers sync checksum path rank tickets_max open_files_max \
             views_max pinned_bytes read_ahead write_behind pipeline_read pipeline_write \
             cache_bytes gradients gradient_bytes gradient_dtype rounding seed store trace"
            .split_whitespace()
            .collect::<Vec<_>>();
        contract.sort_unstable();
        assert_eq!(names, contract);
    }

    #[test]
    fn every_default_is_legal_and_in_its_normal_form() {
        for key in keys() {
            let value = key.kind.parse(key.default).unwrap();
            assert_eq!(key.kind.text(&value), key.default, "{}", key.name);
        }
    }

    #[test]
    fn every_help_is_one_line_that_opens_with_the_object() {
        for key in keys() {
            let rest = key.help.strip_prefix(key.object.name()).unwrap();
            assert!(rest.starts_with(": ") && !rest.contains('\n') && !rest.contains("  "));
            assert!(key.help.len() < 160, "{}", key.name);
        }
    }

    #[test]
    fn choices_of_types_are_spelled_as_the_types_are() {
        use crate::base::dtype::Dtype;
        let Kind::Choice(names) = find("gradient_dtype").unwrap().kind else {
            unreachable!()
        };
        assert_eq!(
            names[1..],
            [Dtype::F32.name(), Dtype::F16.name(), Dtype::Bf16.name()]
        );
    }
}
