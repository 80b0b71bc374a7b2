//! What several test files share: golden files, the built libraries, C compilers, skipping.

#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used, reason = "a test fails by it")]
#![allow(clippy::print_stdout, reason = "a test says what it skips")]

pub(crate) mod listings;
pub(crate) mod programs;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// What a static Rust library needs of the system, as the Makefile of the examples has it.
pub(crate) const NATIVE_LIBS: &str = "-lgcc_s -lutil -lrt -lpthread -lm -ldl -lc";

/// The root of the package.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Compares a committed file with what it should be; `UPDATE_GOLDEN=1` writes it instead.
pub(crate) fn golden(path: &Path, expected: &str) {
    if std::env::var_os("UPDATE_GOLDEN").is_some_and(|value| value == "1") {
        std::fs::write(path, expected).unwrap();
        return;
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    if committed == expected {
        return;
    }
    let differs = committed
        .lines()
        .zip(expected.lines())
        .position(|(committed, expected)| committed != expected);
    panic!(
        "{} is out of date from line {} on; UPDATE_GOLDEN=1 cargo test renews it",
        path.display(),
        differs.map_or(committed.lines().count(), |line| line + 1)
    );
}

/// Says why something is not tested here. A failure where `TSW_TEST_REQUIRE`, a list separated by
/// commas, names the feature or says `all`.
pub(crate) fn skip(feature: &str, reason: &str) {
    let required = std::env::var("TSW_TEST_REQUIRE").unwrap_or_default();
    let is_required = required
        .split(',')
        .any(|name| name.trim() == feature || name.trim() == "all");
    assert!(!is_required, "{feature} is required: {reason}");
    println!("skipped ({feature}): {reason}");
}

/// Whether the full counts of `tests/long` are asked for; says what is left to it otherwise.
pub(crate) fn is_long(what: &str) -> bool {
    let long = std::env::var_os("TSW_TEST_LONG").is_some_and(|value| value == "1");
    if !long {
        println!("skipped (short): {what}: run by tests/long");
    }
    long
}

/// The libraries that C programs link.
#[derive(Debug)]
pub(crate) struct Libraries {
    pub(crate) shared: PathBuf,
    pub(crate) archive: PathBuf,
}

/// The libraries of this very build. Cargo makes them with the one that a test is linked with, and
/// puts them where it puts the test; another build would have other features in what it depends on.
pub(crate) fn libraries() -> &'static Libraries {
    static LIBRARIES: OnceLock<Libraries> = OnceLock::new();
    LIBRARIES.get_or_init(|| {
        let test = std::env::current_exe().unwrap();
        let beside = |name: &str| {
            let library = test.with_file_name(name);
            assert!(library.exists(), "cargo made no {}", library.display());
            library
        };
        Libraries {
            shared: beside("libtensorswap.so"),
            archive: beside("libtensorswap.a"),
        }
    })
}

/// The command line tool; `None` where only a part of the tests was built, and the tool was not.
pub(crate) fn tool() -> Option<PathBuf> {
    let test = std::env::current_exe().unwrap();
    let tool = test.parent().unwrap().with_file_name("tensorswap");
    tool.exists().then_some(tool)
}

/// The compiler that the `cc` crate finds for C or C++.
pub(crate) fn compiler(is_cpp: bool) -> Command {
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    cc::Build::new()
        .cpp(is_cpp)
        .host(&triple)
        .target(&triple)
        .opt_level(2)
        .debug(true)
        .warnings(false)
        .cargo_metadata(false)
        .get_compiler()
        .to_command()
}

/// Runs a command that must succeed; its output otherwise is the failure.
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// An empty directory on the disk of the build, not in memory.
pub(crate) fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}
