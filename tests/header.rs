//! The committed header is what the sources say, and every compiler takes it as it is.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::collections::BTreeSet;

use common::root;

/// The files of the border, in the order of the header. A file that is missing here has no
/// exported function, or `every_exported_function_is_in_the_header` fails.
const SOURCES: &[&str] = &[
    "status",
    "abi",
    "last_error",
    "log",
    "config",
    "engine",
    "engine_stats",
    "buffer",
    "dtype",
    "tensor",
    "dlpack",
    "ticket",
    "swapper",
    "swapper_stats",
    "optimizer",
    "optimizer_gradients",
    "optimizer_view",
    "optimizer_record",
    "optimizer_step",
    "optimizer_contents",
    "optimizer_snapshot",
    "optimizer_exchange",
    "optimizer_stats",
    "partition",
    "timer",
];

fn generated() -> String {
    let config = cbindgen::Config::from_file(root().join("cbindgen.toml")).unwrap();
    let mut builder = cbindgen::Builder::new().with_config(config);
    for source in SOURCES {
        builder = builder.with_src(root().join(format!("src/capi/{source}.rs")));
    }
    let mut text = Vec::new();
    builder.generate().unwrap().write(&mut text);
    tidy(&String::from_utf8(text).unwrap())
}

/// What cbindgen has no option for: types by their short names, and single blank lines.
fn tidy(text: &str) -> String {
    let mut tidied = String::new();
    let mut blank = false;
    for line in text.lines().map(str::trim_end) {
        if blank && line.is_empty() {
            continue;
        }
        blank = line.is_empty();
        if line.starts_with("typedef struct") {
            tidied.push_str(line);
        } else if let Some((name, number)) = line.split_once(" -")
            && line.starts_with("#define")
        {
            // A macro of more than one token needs its parentheses.
            tidied.push_str(&format!("{name} (-{number})"));
        } else {
            tidied.push_str(&line.replace("struct tsw_", "tsw_"));
        }
        tidied.push('\n');
    }
    tidied
}

#[test]
fn the_committed_header_is_what_the_sources_say() {
    common::golden(&root().join("include/tensorswap.h"), &generated());
}

/// The names of the functions in the sources that C can call.
fn exported() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(root().join("src/capi")).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        for function in text.split("#[unsafe(no_mangle)]").skip(1) {
            let (_, name) = function.split_once("fn ").unwrap();
            names.insert(name[..name.find('(').unwrap()].to_owned());
        }
    }
    names
}

#[test]
fn every_exported_function_is_in_the_header() {
    let header = std::fs::read_to_string(root().join("include/tensorswap.h")).unwrap();
    let is_comment = |line: &&str| line.trim_start().starts_with(['*', '/']);
    let declarations: Vec<&str> = header.lines().filter(|line| !is_comment(line)).collect();
    let declarations = declarations.join("\n");
    let exported = exported();
    assert!(exported.len() > 80, "{}", exported.len());
    for name in exported {
        assert!(name.starts_with("tsw_"), "{name}");
        assert_eq!(
            declarations.matches(&format!("{name}(")).count(),
            1,
            "{name}"
        );
    }
}

#[test]
fn the_version_of_the_header_is_the_packages() {
    let header = std::fs::read_to_string(root().join("include/tensorswap.h")).unwrap();
    for (name, value) in [
        ("VERSION", concat!("\"", env!("CARGO_PKG_VERSION"), "\"")),
        ("VERSION_MAJOR", env!("CARGO_PKG_VERSION_MAJOR")),
        ("VERSION_MINOR", env!("CARGO_PKG_VERSION_MINOR")),
        ("VERSION_PATCH", env!("CARGO_PKG_VERSION_PATCH")),
    ] {
        let line = format!("#define TSW_{name} {value}");
        assert!(header.lines().any(|each| each == line), "{line}");
    }
}

/// Uses of the constants that warn where their types do not fit.
const USES: &str = r#"
#include "tensorswap.h"
#include "tensorswap.h"

extern int use(tsw_status status, uint32_t dtype, uint64_t timeout_ns);
int use(tsw_status status, uint32_t dtype, uint64_t timeout_ns)
{
    const uint32_t flags = TSW_TENSOR_KEEP_LENGTH | TSW_TENSOR_ACCUMULATE;
    const char *version = TSW_VERSION;
    tsw_tensor tensor;
    tensor.dtype = TSW_BF16;
    tensor.flags = flags;
    if (status == TSW_ERR_IO || status < TSW_OK || status -TSW_ERR_BUSY == 0)
        return version[0];
    tsw_parameter_view view;
    tsw_state_view *const last = &view.states[TSW_STATES_MAX - 1];
    last->numel = TSW_USER_DATA_BYTES_MAX;
    view.id = TSW_NO_PARAMETER;
    if (view.id == TSW_NO_PARAMETER && last->numel == 0)
        return TSW_END;
    return dtype == TSW_F32 && timeout_ns != TSW_WAIT_FOREVER && tsw_abi() == TSW_ABI
        && tsw_set_log(0, 0, TSW_LOG_WARN) == TSW_OK && tensor.dtype != dtype;
}
"#;

/// Compiles the uses with a compiler; nothing is to be said about them.
fn compile(mut compiler: std::process::Command, language: &str, standard: &str) {
    let directory = common::directory();
    let source = directory.path().join("uses");
    std::fs::write(&source, USES).unwrap();
    compiler.args(["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror"]);
    compiler.args(["-fsyntax-only", "-x", language, standard, "-I"]);
    compiler.arg(root().join("include")).arg(&source);
    common::run(&mut compiler);
}

#[test]
fn the_header_compiles_alone_as_c99_and_as_cpp17() {
    compile(common::compiler(false), "c", "-std=c99");
    compile(common::compiler(true), "c++", "-std=c++17");
}

#[test]
fn the_header_compiles_with_clang() {
    for (program, language, standard) in
        [("clang", "c", "-std=c99"), ("clang++", "c++", "-std=c++17")]
    {
        let mut compiler = std::process::Command::new(program);
        match compiler.arg("--version").output() {
            Ok(_) => compile(std::process::Command::new(program), language, standard),
            Err(error) => common::skip(program, &error.to_string()),
        }
    }
}
