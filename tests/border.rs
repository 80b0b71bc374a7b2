//! A defect inside the library never crosses the border: it becomes a status, its object answers
//! that it is poisoned from then on, and everything can still be freed.

#![allow(unsafe_code, reason = "calls the functions that C calls")]
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::ffi::{CStr, CString, c_char, c_void};
use std::os::unix::ffi::OsStrExt;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

use tensorswap::capi::testing::panic_at_next_call;
use tensorswap::capi::*;

fn message() -> String {
    let mut text = [0 as c_char; 4096];
    // SAFETY: the room is as large as it says, and ended with a NUL.
    unsafe {
        tsw_last_error_message(text.as_mut_ptr(), text.len());
        CStr::from_ptr(text.as_ptr()).to_str().unwrap().to_owned()
    }
}

fn engine() -> *mut tsw_engine {
    let mut engine = ptr::null_mut();
    // SAFETY: a place for the result.
    assert_eq!(unsafe { tsw_engine_new(ptr::null(), &mut engine) }, TSW_OK);
    engine
}

#[test]
fn a_panic_poisons_the_engine_and_not_its_children() {
    let engine = engine();
    let (mut buffer, mut swapper) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: live handles, freed at the end.
    unsafe {
        assert_eq!(tsw_buffer_new(engine, 4096, &mut buffer), TSW_OK);
        assert_eq!(tsw_swapper_new(engine, ptr::null(), &mut swapper), TSW_OK);
        assert_eq!(
            tsw_swapper_add_buffers(swapper, &buffer, 1, TSW_F32),
            TSW_OK
        );

        panic_at_next_call();
        assert_eq!(tsw_engine_wait_all(engine, 0), TSW_ERR_INTERNAL);
        assert!(message().contains("a defect on demand"), "{}", message());
        assert!(!message().contains('\n'));
        assert_eq!(tsw_engine_wait_all(engine, 0), TSW_ERR_POISONED);
        assert_eq!(tsw_engine_describe(engine, ptr::null_mut(), 0), 0);
        let mut other = ptr::dangling_mut();
        assert_eq!(tsw_buffer_new(engine, 4096, &mut other), TSW_ERR_POISONED);
        assert!(other.is_null());

        assert_eq!(tsw_swapper_flush(swapper, TSW_WAIT_FOREVER), TSW_OK);
        tsw_engine_free(engine);
        tsw_swapper_free(swapper);
        tsw_buffer_free(buffer);
    }
}

#[test]
fn a_panic_in_the_swapper_leaves_its_buffers_to_be_freed() {
    static RELEASES: AtomicU32 = AtomicU32::new(0);
    unsafe extern "C" fn on_release(_: *mut c_void, _: *mut c_void, len_bytes: u64) {
        RELEASES.fetch_add(u32::try_from(len_bytes).unwrap(), Ordering::SeqCst);
    }
    let engine = engine();
    let mut memory = vec![0_u8; 8192];
    let (mut swapper, mut buffers) = (ptr::null_mut(), [ptr::null_mut(); 2]);
    let (mut back, mut count) = ([ptr::null_mut(); 2], 7);
    // SAFETY: live handles, freed at the end; the memory outlives them.
    unsafe {
        assert_eq!(tsw_swapper_new(engine, ptr::null(), &mut swapper), TSW_OK);
        for (index, buffer) in buffers.iter_mut().enumerate() {
            let data = memory.as_mut_ptr().add(index * 4096).cast();
            let hook = Some(on_release as unsafe extern "C" fn(_, _, _));
            let status = tsw_buffer_register(engine, data, 4096, hook, ptr::null_mut(), buffer);
            assert_eq!(status, TSW_OK);
        }
        assert_eq!(
            tsw_swapper_add_buffers(swapper, buffers.as_ptr(), 2, TSW_F32),
            TSW_OK
        );
        panic_at_next_call();
        let release = || tsw_swapper_release_buffers(swapper, back.as_mut_ptr(), 2, &mut count);
        let mut release = release;
        assert_eq!(release(), TSW_ERR_INTERNAL);
        assert_eq!(release(), TSW_ERR_POISONED);
        assert_eq!(count, 0);
        assert_eq!(tsw_swapper_submit(swapper), TSW_ERR_POISONED);
        tsw_buffer_free(buffers[0]); // while the poisoned swapper holds it
        tsw_swapper_free(swapper);
        tsw_buffer_free(buffers[1]);
        tsw_engine_free(engine);
    }
    assert_eq!(RELEASES.load(Ordering::SeqCst), 8192);
}

#[test]
fn a_panic_where_there_is_no_object_yet_is_only_a_status() {
    let mut engine = ptr::dangling_mut();
    // SAFETY: a place for the result.
    unsafe {
        panic_at_next_call();
        assert_eq!(tsw_engine_new(ptr::null(), &mut engine), TSW_ERR_INTERNAL);
        assert!(engine.is_null());
        assert_eq!(tsw_engine_new(ptr::null(), &mut engine), TSW_OK);
        panic_at_next_call();
        tsw_engine_free(engine); // logged, not lost: nothing crosses here either
        panic_at_next_call();
        assert!(tsw_config_new().is_null());
    }
}

/// A hook on a thread of the engine frees what it likes, the engine too, and nothing hangs.
#[test]
fn a_release_hook_may_free_other_buffers_and_the_engine() {
    struct Left {
        engine: *mut tsw_engine,
        buffer: *mut tsw_buffer,
    }
    unsafe extern "C" fn free_all(user_data: *mut c_void, _: *mut c_void, _: u64) {
        // SAFETY: given below, once.
        unsafe {
            let left = Box::from_raw(user_data.cast::<Left>());
            tsw_buffer_free(left.buffer);
            tsw_engine_free(left.engine);
        }
    }
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = CString::new(directory.path().join("file").as_os_str().as_bytes()).unwrap();
    let engine = engine();
    let memory = Box::leak(vec![1_u8; 1 << 20].into_boxed_slice());
    let (mut buffer, mut foreign) = (ptr::null_mut(), ptr::null_mut());
    let tensor = tsw_tensor {
        data: memory.as_mut_ptr().cast(),
        numel: 1 << 20,
        dtype: TSW_BYTES,
        flags: 0,
        file_offset: 0,
        user_tag: 0,
        reserved: [0; 3],
    };
    let mut ticket = 0;
    // SAFETY: live handles; the hook frees two of them when the last request is over.
    unsafe {
        assert_eq!(tsw_buffer_new(engine, 4096, &mut buffer), TSW_OK);
        let left = Box::into_raw(Box::new(Left { engine, buffer })).cast();
        let (data, len) = (tensor.data, tensor.numel);
        let status = tsw_buffer_register(engine, data, len, Some(free_all), left, &mut foreign);
        assert_eq!(status, TSW_OK);
        let paths = [path.as_ptr()];
        let status = tsw_engine_swap_out(engine, &tensor, paths.as_ptr(), 1, &mut ticket);
        assert_eq!(status, TSW_OK);
        // Drops the caller's reference; the request's goes on the engine's own thread.
        tsw_buffer_free(foreign);
    }
    let file = directory.path().join("file");
    for _ in 0..1000 {
        if std::fs::metadata(&file).is_ok_and(|file| file.len() == 1 << 20) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    panic!("the request did not end");
}

#[test]
fn a_panic_poisons_the_optimizer_and_its_store_opens_again() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = CString::new(directory.path().as_os_str().as_bytes()).unwrap();
    let engine = engine();
    let (mut optimizer, mut other) = (ptr::null_mut(), ptr::null_mut());
    let mut view = std::mem::MaybeUninit::<tsw_parameter_view>::zeroed();
    // SAFETY: live handles, freed at the end; texts that end in NUL; a structure of its own size.
    unsafe {
        let view = view.as_mut_ptr();
        (*view).struct_size = u32::try_from(size_of::<tsw_parameter_view>()).unwrap();
        let config = tsw_config_new();
        let set = tsw_config_set(config, c"path".as_ptr(), path.as_ptr());
        assert_eq!(set, TSW_OK);
        assert_eq!(tsw_optimizer_new(engine, config, &mut optimizer), TSW_OK);
        let state = tsw_optimizer_add_state(optimizer, c"master".as_ptr(), TSW_F32, TSW_F32);
        assert_eq!(state, TSW_OK);
        assert_eq!(
            tsw_optimizer_add_parameter(optimizer, 1, ptr::null(), 1000),
            TSW_OK
        );
        assert_eq!(tsw_optimizer_step_begin(optimizer, ptr::null(), 0), TSW_OK);
        assert_eq!(tsw_optimizer_step_next(optimizer, view), TSW_OK);
        assert_eq!(((*view).id, (*view).states_len), (1, 1));

        panic_at_next_call();
        assert_eq!(
            tsw_optimizer_step_next(optimizer, view),
            TSW_ERR_INTERNAL,
            "{}",
            message()
        );
        assert_eq!((*view).id, TSW_NO_PARAMETER);
        assert_eq!(tsw_optimizer_step_done(optimizer, 1, 1), TSW_ERR_POISONED);
        assert_eq!(tsw_optimizer_commit(optimizer), TSW_ERR_POISONED);
        assert_eq!(tsw_optimizer_parameters_len(optimizer), 0);
        assert_eq!(
            tsw_optimizer_new(engine, config, &mut other),
            TSW_ERR_LOCKED
        );
        assert!(other.is_null());
        tsw_optimizer_free(optimizer);

        assert_eq!(tsw_optimizer_new(engine, config, &mut other), TSW_OK);
        tsw_optimizer_free(other);
        tsw_config_free(config);
        tsw_engine_free(engine);
    }
}
