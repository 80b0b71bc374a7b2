//! Programs in C and C++: how they are linked, run and judged.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// BOUND: how long a program may run.
pub(crate) const RUN_TIME_MAX: Duration = Duration::from_secs(150);
/// What makes gcc and clang sanitize, in a third of the time that more optimization would take.
pub(crate) const SANITIZE: &[&str] = &[
    "-O1",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
];

/// Which library a program is linked with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Linked {
    Shared,
    Static,
}

/// Whether address and undefined-behaviour sanitizers watch it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Checked {
    Plain,
    Sanitized,
}

/// Builds a program in C or C++ as the Makefile of the examples does.
pub(crate) fn build(source: &Path, program: &Path, linked: Linked, checked: Checked) {
    let is_cpp = source.extension().is_some_and(|found| found == "cpp");
    let mut compiler = super::compiler(is_cpp);
    compiler.args(match is_cpp {
        true => ["-std=c++17", "-ffp-contract=off"].as_slice(),
        false => &["-std=c11"],
    });
    compiler.args(["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-pthread"]);
    for folder in ["include", "examples_c"] {
        compiler.arg("-I").arg(super::root().join(folder));
    }
    if checked == Checked::Sanitized {
        compiler.args(SANITIZE);
    }
    compiler.arg(source).arg("-o").arg(program);
    link(&mut compiler, linked);
    super::run(&mut compiler);
}

/// Builds one of the examples into a directory, with the shared library.
pub(crate) fn example(name: &str, directory: &Path) -> PathBuf {
    let program = directory.join(name.replace('.', "_"));
    let source = super::root().join("examples_c").join(name);
    build(&source, &program, Linked::Shared, Checked::Plain);
    program
}

/// Links with the library, as a Makefile would.
pub(crate) fn link(compiler: &mut Command, linked: Linked) {
    let libraries = super::libraries();
    match linked {
        Linked::Shared => {
            let directory = libraries.shared.parent().unwrap();
            compiler
                .arg("-L")
                .arg(directory)
                .arg(format!("-Wl,-rpath,{}", directory.display()))
                .args(["-ltensorswap", "-lm"]);
        }
        Linked::Static => {
            compiler
                .arg(&libraries.archive)
                .args(super::NATIVE_LIBS.split(' '));
        }
    }
}

/// How a program ended, and what it said. It is ended where it takes too long.
pub(crate) fn run(
    program: &Path,
    directory: &Path,
    arguments: &[&str],
) -> (Option<ExitStatus>, String) {
    let log = directory.join(".output");
    let output = File::create(&log).unwrap();
    let mut child = Command::new(program)
        .args(arguments)
        .current_dir(directory)
        .env("ASAN_OPTIONS", "detect_leaks=1:abort_on_error=0")
        .env("UBSAN_OPTIONS", "print_stacktrace=1")
        .stdin(Stdio::null())
        .stderr(output.try_clone().unwrap())
        .stdout(output)
        .spawn()
        .unwrap();
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        if started.elapsed() > RUN_TIME_MAX {
            child.kill().unwrap();
            child.wait().unwrap();
            break None;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let text = String::from_utf8_lossy(&std::fs::read(&log).unwrap()).into_owned();
    (status, text)
}

/// What a program said that [`run`] has run, and that must have succeeded.
pub(crate) fn succeeded((status, output): (Option<ExitStatus>, String)) -> String {
    let is_well = status.is_some_and(|status| status.success());
    assert!(is_well, "{status:?}\n{output}");
    output
}

/// The line in which a training says what its store holds.
pub(crate) fn checksum(output: &str) -> &str {
    let line = output.lines().rfind(|line| line.starts_with("checksum"));
    line.unwrap_or_else(|| panic!("no checksum in\n{output}"))
}

/// Runs a program; what is wrong with how it ended, or nothing. With 77 it says what it skips.
pub(crate) fn failure(program: &Path, directory: &Path, arguments: &[&str]) -> String {
    let name = program.file_name().unwrap().to_string_lossy();
    let (status, output) = run(program, directory, arguments);
    match status.map(|status| (status.code(), status)) {
        Some((Some(0), _)) => String::new(),
        Some((Some(77), _)) => {
            super::skip(&name, output.lines().last().unwrap_or_default());
            String::new()
        }
        Some((_, status)) => format!("{name}: {status}\n{output}\n"),
        None => format!("{name}: still running after {RUN_TIME_MAX:?}\n{output}\n"),
    }
}

/// Why nothing can be sanitized here, if so: the compiler or its runtime lacks it, or the
/// sanitizer cannot work in this container.
pub(crate) fn sanitizers_missing() -> Option<&'static str> {
    static MISSING: OnceLock<Option<String>> = OnceLock::new();
    MISSING
        .get_or_init(|| {
            let directory = super::directory();
            let source = directory.path().join("empty.c");
            let program = directory.path().join("empty");
            std::fs::write(&source, "int main(void) { return 0; }\n").unwrap();
            let mut compiler = super::compiler(false);
            compiler.args(SANITIZE).arg(&source).arg("-o").arg(&program);
            let built = compiler.output().unwrap();
            if !built.status.success() {
                return Some(String::from_utf8_lossy(&built.stderr).into_owned());
            }
            let (status, output) = run(&program, directory.path(), &[]);
            let works = status.is_some_and(|status| status.success());
            (!works).then_some(output)
        })
        .as_deref()
}
