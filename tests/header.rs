//! The committed header is what the sources say, and every compiler takes it as it is.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::path::Path;

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
    "timer",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

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
