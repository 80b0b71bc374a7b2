//! What the built libraries export and need, and that they can be loaded by path and by name, as
//! other languages do.

#![allow(unsafe_code, reason = "calls through pointers found by name")]
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod common;

use std::collections::BTreeSet;
use std::ffi::{CString, c_char, c_void};
use std::os::unix::ffi::OsStrExt;
use std::process::Command;
use std::ptr;

use libloading::Library;
use tensorswap::capi::{tsw_status, tsw_tensor};

/// The functions that the header declares.
fn declared() -> BTreeSet<String> {
    let header = common::root().join("include/tensorswap.h");
    let header = std::fs::read_to_string(header).unwrap();
    header
        .lines()
        .filter(|line| !line.trim_start().starts_with(['*', '/']) && !line.starts_with("typedef"))
        .filter_map(|line| {
            let before = &line[..line.find('(')?];
            let name = &before[before.rfind([' ', '*'])? + 1..];
            name.starts_with("tsw_").then(|| name.to_owned())
        })
        .collect()
}

#[test]
fn the_shared_library_exports_the_header_and_nothing_else() {
    let mut nm = Command::new("nm");
    nm.args(["-D", "--defined-only", "--format=posix"]);
    nm.arg(&common::libraries().shared);
    match nm.output() {
        Err(error) => common::skip("nm", &error.to_string()),
        Ok(_) => {
            let text = common::run(&mut nm);
            let exported: BTreeSet<String> = text
                .lines()
                .filter_map(|line| line.split(' ').next().map(str::to_owned))
                .collect();
            assert_eq!(exported, declared());
        }
    }
}

#[test]
fn the_static_library_needs_what_the_build_files_say() {
    let directory = common::directory();
    let source = directory.path().join("empty.rs");
    std::fs::write(&source, "").unwrap();
    // What is needed beyond libc is needed by Rust's own library; that ours adds nothing is seen
    // where the C programs are linked with this list and no more.
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc
        .args(["--crate-type", "staticlib", "--print", "native-static-libs"])
        .arg("--out-dir")
        .arg(directory.path())
        .arg(&source);
    let output = rustc.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let (_, libs) = text.split_once("native-static-libs: ").expect(&text);
    let libs = libs.lines().next().unwrap().trim();
    assert_eq!(libs, common::NATIVE_LIBS);

    let makefile = common::root().join("examples_c/Makefile");
    let makefile = std::fs::read_to_string(makefile).unwrap();
    assert!(makefile.contains(&format!("NATIVE_LIBS := {libs}\n")));
    let cmake = common::root().join("examples_c/CMakeLists.txt");
    let cmake = std::fs::read_to_string(cmake).unwrap();
    let list = libs.replace("-l", "").replace(' ', ";");
    assert!(cmake.contains(&format!("\"{list}\"")), "{list}");
}

/// A handle, as a language without our types has it.
type Pointer = *mut c_void;

#[test]
fn tensors_go_out_and_in_through_the_library_loaded_by_path() {
    type New = unsafe extern "C" fn(Pointer, *mut Pointer) -> tsw_status;
    type SwapperNew = unsafe extern "C" fn(Pointer, Pointer, *mut Pointer) -> tsw_status;
    type BufferNew = unsafe extern "C" fn(Pointer, u64, *mut Pointer) -> tsw_status;
    type AddBuffers = unsafe extern "C" fn(Pointer, *const Pointer, usize, u32) -> tsw_status;
    type Swap =
        unsafe extern "C" fn(Pointer, *const tsw_tensor, *const *const c_char, usize) -> tsw_status;
    type Flush = unsafe extern "C" fn(Pointer, u64) -> tsw_status;
    type Free = unsafe extern "C" fn(Pointer);

    let directory = common::directory();
    let path = directory.path().join("tensor");
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let paths = [path.as_ptr()];
    let mut values: Vec<f32> = (0..50_000_u16).map(f32::from).collect();
    let tensor = tsw_tensor {
        data: values.as_mut_ptr().cast(),
        numel: values.len() as u64,
        dtype: 1,
        flags: 0,
        file_offset: 0,
        user_tag: 0,
        reserved: [0; 3],
    };
    // SAFETY: the signatures are the header's; the values outlive the calls.
    unsafe {
        let library = Library::new(&common::libraries().shared).unwrap();
        macro_rules! call {
            ($name:literal as $type:ty: $($argument:expr),*) => {
                library.get::<$type>($name).unwrap()($($argument),*)
            };
        }
        let (mut engine, mut swapper, mut buffer) =
            (ptr::null_mut(), ptr::null_mut(), ptr::null_mut());
        assert_eq!(
            call!("tsw_engine_new" as New: ptr::null_mut(), &mut engine),
            0
        );
        let status = call!("tsw_swapper_new" as SwapperNew: engine, ptr::null_mut(), &mut swapper);
        assert_eq!(status, 0);
        assert_eq!(
            call!("tsw_buffer_new" as BufferNew: engine, 65536, &mut buffer),
            0
        );
        let status = call!("tsw_swapper_add_buffers" as AddBuffers: swapper, &buffer, 1, 1);
        assert_eq!(status, 0);
        let status = call!("tsw_swapper_swap_out" as Swap: swapper, &tensor, paths.as_ptr(), 1);
        assert_eq!(status, 0);
        assert_eq!(call!("tsw_swapper_flush" as Flush: swapper, u64::MAX), 0);
        values.fill(0.0);
        let status = call!("tsw_swapper_swap_in" as Swap: swapper, &tensor, paths.as_ptr(), 1);
        assert_eq!(status, 0);
        call!("tsw_swapper_free" as Free: swapper);
        call!("tsw_buffer_free" as Free: buffer);
        call!("tsw_engine_free" as Free: engine);
        // Threads of the library may still be on their way out of their last instruction.
        std::mem::forget(library);
    }
    let right = values
        .iter()
        .zip(0_u16..)
        .all(|(value, index)| *value == f32::from(index));
    assert!(right && values.len() == 50_000);
}
