//! What docs/GUIDE.md says is done, line by line: the library is installed into an empty prefix, the
//! listings are written to files, the commands are run in their order, and their output is compared.
//! What an installation is to be otherwise (a prefix that moves, a static library, another version)
//! is tried after that.
//!
//! The first word behind a fence is the language. `sh` is run, as `sh source` in the source
//! directory; `text output` is what the commands before it print; any other second word is the name
//! of the file that the listing is written to.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use common::listings::{Listing, listings};
use common::root;

/// The guide's listings, in their order.
fn blocks() -> Vec<Listing> {
    listings(&std::fs::read_to_string(root().join("docs/GUIDE.md")).unwrap())
}

/// Brings what `cargo test` has built of other crates to where `make` builds (`$1`), with its times:
/// cargo takes what fits, and builds the rest.
const TAKE_OVER: &str = r#"[ ! -e "$1" ] || exit 0
    mkdir -p "$1.new/deps"
    cp -a .fingerprint build "$1.new"
    find deps -name 'lib*' ! -name 'libtensorswap*' -exec cp -al -t "$1.new/deps" {} +
    mv "$1.new" "$1""#;

/// The directory that the commands build in, which the next run finds again.
fn target_directory() -> &'static Path {
    static TAKEN_OVER: OnceLock<()> = OnceLock::new();
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    TAKEN_OVER.get_or_init(|| {
        let test = std::env::current_exe().unwrap();
        let ours = test.ancestors().nth(2).unwrap();
        let theirs = directory.join("install").join(ours.file_name().unwrap());
        let mut shell = Command::new("sh");
        shell.args(["-euc", TAKE_OVER, "sh"]).arg(theirs);
        common::run(shell.current_dir(ours));
    });
    directory
}

/// A shell for commands of the guide. The library is built as they say, but quickly: in the profile
/// of this test, or without optimization.
fn shell(text: &str, directory: &Path, prefix: &Path) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-eu", "-c", text]).current_dir(directory);
    shell.env("PREFIX", prefix);
    shell.env("CARGO_TARGET_DIR", target_directory());
    if cfg!(debug_assertions) {
        shell.env("PROFILE", "dev");
    }
    for (key, value) in [
        ("OPT_LEVEL", "0"),
        ("LTO", "off"),
        ("DEBUG", "0"),
        ("CODEGEN_UNITS", "16"),
        ("INCREMENTAL", "true"),
    ] {
        shell.env(format!("CARGO_PROFILE_RELEASE_{key}"), value);
    }
    // What cargo tells its own tests is not for the cargo of the commands.
    for (key, _) in std::env::vars_os() {
        if key.to_string_lossy().starts_with("CARGO_PKG_") || key == "CARGO_MANIFEST_DIR" {
            shell.env_remove(key);
        }
    }
    shell
}

/// The program's own answer to `--version`, or why there is none.
fn is_there(program: &str, arguments: &[&str]) -> bool {
    match Command::new(program).args(arguments).output() {
        Ok(output) if output.status.success() => true,
        Ok(output) => {
            let reason = String::from_utf8_lossy(&output.stderr).into_owned();
            common::skip(program, reason.lines().next().unwrap_or_default());
            false
        }
        Err(error) => {
            common::skip(program, &error.to_string());
            false
        }
    }
}

/// Installs into a prefix by the first command of the guide.
fn install(prefix: &Path) {
    let blocks = blocks();
    let command = blocks.iter().find(|block| block.name == "source").unwrap();
    assert!(command.text.starts_with("make install"));
    common::run(&mut shell(&command.text, root(), prefix));
}

/// What lies below a directory, by relative path, and whether it is a link and where to.
fn listing(directory: &Path) -> Vec<(PathBuf, Option<PathBuf>)> {
    let mut found = Vec::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(next) = directories.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.is_symlink() {
                directories.push(path);
            } else {
                let relative = path.strip_prefix(directory).unwrap().to_owned();
                found.push((relative, std::fs::read_link(&path).ok()));
            }
        }
    }
    found.sort();
    found
}

fn version_parts() -> (String, String) {
    let version = env!("CARGO_PKG_VERSION");
    let soname = version.rsplit_once('.').unwrap().0;
    assert!(
        version.starts_with("0."),
        "from 1.0 on the SONAME has one number"
    );
    (version.to_owned(), format!("libtensorswap.so.{soname}"))
}

/// The tools of every step; each one that is missing is told.
fn tools() -> bool {
    ["make", "pkg-config", "c++", "cmake"]
        .iter()
        .all(|tool| is_there(tool, &["--version"]))
}

#[test]
fn every_command_and_listing_of_the_guide_runs() {
    if !tools() {
        return;
    }
    let directory = common::directory();
    let work = directory.path();
    let prefix = work.join("prefix");
    let has_cuda = std::env::var_os("CUDA_HOME").is_some();
    let mut printed = String::new();
    let mut counts = [0; 3];
    for block in blocks() {
        match (block.language.as_str(), block.name.as_str()) {
            ("sh", "cargo-c") => {} // installs_the_same_files
            ("sh", "cuda") if !has_cuda => common::skip("cuda", "CUDA_HOME is not set"),
            ("sh", "cuda") => {
                let output = shell(&block.text, work, &prefix).output().unwrap();
                match output.status.code() {
                    Some(0) => assert_eq!(output.stdout, b"7\n"),
                    Some(77) => common::skip("cuda", "there is no GPU"),
                    _ => panic!("{}", String::from_utf8_lossy(&output.stderr)),
                }
            }
            ("sh", place) => {
                counts[0] += 1;
                let directory = if place == "source" { root() } else { work };
                printed = common::run(&mut shell(&block.text, directory, &prefix));
            }
            ("text", "output") => {
                counts[1] += 1;
                // What a command prints is its last lines: tools before it talk too.
                assert!(
                    printed.ends_with(&block.text),
                    "printed:\n{printed}\nexpected:\n{}",
                    block.text
                );
            }
            ("json", "") => {
                let value: serde_json::Value = serde_json::from_str(&block.text).unwrap();
                assert_eq!(value["names"].as_array().unwrap().len(), 3);
            }
            (language, name) => {
                assert!(name.contains('.'), "a listing in {language} has no name");
                counts[2] += 1;
                std::fs::write(work.join(name), &block.text).unwrap();
            }
        }
    }
    assert!(counts.iter().all(|count| *count >= 6), "{counts:?}");
}

const C_PROGRAM: &str = "#include <stdio.h>\n#include <tensorswap.h>\n\
    int main(void) { puts(tsw_version()); return tsw_abi() != TSW_ABI; }\n";

const CMAKE_PROJECT: &str = "cmake_minimum_required(VERSION 3.16)\n\
    project(uses LANGUAGES C)\n\
    find_package(tensorswap ${WANTED})\n\
    if(NOT tensorswap_FOUND)\n\
      message(FATAL_ERROR \"not found\")\n\
    endif()\n\
    add_executable(uses program.c)\n\
    target_link_libraries(uses PRIVATE tensorswap::tensorswap)\n";

/// Configures a C project with what it wants of the package; whether that worked, and what it said.
fn configure(work: &Path, prefix: &Path, wanted: &str) -> (bool, String) {
    let build = work.join("build");
    let _ = std::fs::remove_dir_all(&build);
    let mut cmake = Command::new("cmake");
    cmake.arg("-S").arg(work).arg("-B").arg(&build);
    cmake.arg(format!("-DCMAKE_PREFIX_PATH={}", prefix.display()));
    cmake.arg(format!("-DWANTED={wanted}"));
    let output = cmake.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.success(), text)
}

/// Builds and runs what was configured; what the loader gives the program.
fn built(work: &Path) -> String {
    let build = work.join("build");
    common::run(Command::new("cmake").arg("--build").arg(&build));
    let program = build.join("uses");
    let output = common::run(&mut Command::new(&program));
    assert_eq!(output.trim(), env!("CARGO_PKG_VERSION"));
    common::run(Command::new("ldd").arg(&program))
}

#[test]
fn an_installation_is_what_c_projects_expect() {
    if !tools() {
        return;
    }
    let directory = common::directory();
    let work = directory.path();
    let prefix = work.join("prefix");
    install(&prefix);
    let (version, soname) = version_parts();

    let library = prefix
        .join("lib")
        .join(format!("libtensorswap.so.{version}"));
    let dynamic = common::run(Command::new("readelf").arg("-d").arg(&library));
    assert!(
        dynamic.contains(&format!("Library soname: [{soname}]")),
        "{dynamic}"
    );
    let ask = |what: &str| {
        let mut pkg_config = Command::new("pkg-config");
        pkg_config.env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig"));
        common::run(pkg_config.args(what.split(' ')).arg("tensorswap"))
            .trim()
            .to_owned()
    };
    assert_eq!(ask("--modversion"), version);
    assert_eq!(ask("--cflags"), format!("-I{}/include", prefix.display()));
    assert_eq!(
        ask("--libs"),
        format!("-L{}/lib -ltensorswap", prefix.display())
    );
    assert!(
        ask("--libs --static").ends_with(common::NATIVE_LIBS),
        "{}",
        ask("--libs --static")
    );

    // In C, with pkg-config.
    std::fs::write(work.join("program.c"), C_PROGRAM).unwrap();
    let program = work.join("program");
    let mut compile = Command::new("cc");
    compile.arg(work.join("program.c")).arg("-o").arg(&program);
    compile.args(ask("--cflags --libs").split(' '));
    common::run(compile.arg(format!("-Wl,-rpath,{}/lib", prefix.display())));
    assert_eq!(common::run(&mut Command::new(&program)).trim(), version);
    let loaded = common::run(Command::new("ldd").arg(&program));
    assert!(loaded.contains(&soname), "{loaded}");

    // With CMake, after the prefix was moved.
    let moved = work.join("moved prefix");
    std::fs::rename(&prefix, &moved).unwrap();
    std::fs::write(work.join("CMakeLists.txt"), CMAKE_PROJECT).unwrap();
    for wanted in ["0.1;REQUIRED", "0.1;REQUIRED;COMPONENTS;shared"] {
        let (is_configured, text) = configure(work, &moved, wanted);
        assert!(is_configured, "{text}");
        let loaded = built(work);
        assert!(
            loaded.contains(&soname) && loaded.contains("moved prefix"),
            "{loaded}"
        );
    }
    let (is_configured, text) = configure(work, &moved, "0.1;REQUIRED;COMPONENTS;static");
    assert!(is_configured, "{text}");
    assert!(!built(work).contains("tensorswap.so"));

    // What it is not is said.
    for (wanted, told) in [
        ("0.2;REQUIRED", "0.1.0"),
        ("0.1.1;REQUIRED", "0.1.0"),
        ("0.0.9;REQUIRED", "0.1.0"),
        ("1;REQUIRED", "0.1.0"),
        (
            "REQUIRED;COMPONENTS;python",
            "shared and static, not python",
        ),
        ("REQUIRED;COMPONENTS;shared;static", "one of the components"),
    ] {
        let (is_configured, text) = configure(work, &moved, wanted);
        assert!(!is_configured && text.contains(told), "{wanted}: {text}");
    }
    for kind in ["static", "shared"] {
        let file = if kind == "static" {
            "libtensorswap.a"
        } else {
            "libtensorswap.so"
        };
        std::fs::remove_file(moved.join("lib").join(file)).unwrap();
        let (is_configured, text) = configure(work, &moved, &format!("REQUIRED;COMPONENTS;{kind}"));
        assert!(!is_configured && text.contains(file), "{text}");
    }
}

#[test]
fn what_was_installed_can_be_removed_and_staged() {
    if !is_there("make", &["--version"]) {
        return;
    }
    let directory = common::directory();
    let stage = directory.path().join("stage");
    let make = |command: &str| {
        let command = format!("make {command} DESTDIR='{}' PREFIX=/opt/t", stage.display());
        common::run(&mut shell(&command, root(), Path::new("/unused")));
    };
    make("install LIBDIR=/opt/t/lib64");
    let pc = std::fs::read_to_string(stage.join("opt/t/lib64/pkgconfig/tensorswap.pc")).unwrap();
    assert!(
        pc.contains("prefix=/opt/t\n") && pc.contains("libdir=${prefix}/lib64\n"),
        "{pc}"
    );
    assert!(
        !pc.contains('@') && !pc.contains(stage.to_str().unwrap()),
        "{pc}"
    );
    make("uninstall LIBDIR=/opt/t/lib64");
    assert_eq!(listing(&stage), []);

    let mut relative = shell("make install PREFIX=relative", root(), Path::new("/unused"));
    let output = relative.output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && told.contains("absolute path"),
        "{told}"
    );
    assert!(!root().join("relative").exists());
}

#[test]
fn cargo_c_installs_the_same_files() {
    if !common::is_long("cargo-c, which builds everything again") {
        return;
    }
    let has_cargo_c = Command::new(env!("CARGO"))
        .args(["cinstall", "--version"])
        .output();
    if !has_cargo_c.is_ok_and(|output| output.status.success()) {
        common::skip("cargo-c", "cargo install cargo-c --locked brings it");
        return;
    }
    let directory = common::directory();
    let (by_make, by_cargo_c) = (
        directory.path().join("make"),
        directory.path().join("cargo-c"),
    );
    install(&by_make);
    let blocks = blocks();
    let command = blocks.iter().find(|block| block.name == "cargo-c").unwrap();
    assert!(command.text.starts_with("cargo cinstall"));
    common::run(&mut shell(&command.text, root(), &by_cargo_c));
    assert_eq!(listing(&by_make), listing(&by_cargo_c));
    let pc = |prefix: &Path| {
        let text = std::fs::read_to_string(prefix.join("lib/pkgconfig/tensorswap.pc")).unwrap();
        text.replace(prefix.to_str().unwrap(), "PREFIX")
    };
    assert_eq!(pc(&by_make), pc(&by_cargo_c));
    let dynamic = |prefix: &Path| {
        let library = prefix.join("lib/libtensorswap.so");
        let text = common::run(Command::new("readelf").arg("-d").arg(library));
        let entries = text
            .lines()
            .filter(|line| line.contains("SONAME") || line.contains("NEEDED"));
        entries.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(dynamic(&by_make), dynamic(&by_cargo_c));
}

#[test]
fn the_versions_in_the_build_files_are_the_one_of_the_package() {
    let (version, _) = version_parts();
    let cmake = root().join("packaging/tensorswapConfigVersion.cmake");
    let cmake = std::fs::read_to_string(cmake).unwrap();
    assert!(cmake.contains(&format!("set(PACKAGE_VERSION \"{version}\")")));
    let header = std::fs::read_to_string(root().join("include/tensorswap.h")).unwrap();
    assert!(header.contains(&format!("#define TSW_VERSION \"{version}\"")));
    let config = std::fs::read_to_string(root().join("packaging/tensorswapConfig.cmake")).unwrap();
    let list = common::NATIVE_LIBS.replace("-l", "").replace(' ', ";");
    assert!(config.contains(&format!("\"{list}\"")));
}
