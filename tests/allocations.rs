//! In the steady state nothing allocates: no thread of the process, for no operation.
#![allow(unsafe_code, reason = "a counting allocator")]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::ffi::CString;
use std::sync::atomic::{AtomicU64, Ordering};

use tensorswap::base::dtype::Dtype;
use tensorswap::io::Tensor;

/// Counts what the system's allocator is asked for, by any thread.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call goes to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const TENSORS: usize = 8;
const TENSOR_BYTES: usize = 300_000;
const ROUNDS: u64 = 200;

/// One file after the other, both ways, several requests in flight.
#[test]
fn direct_requests_on_open_files_allocate_nothing() {
    for backend in ["io_uring", "threads"] {
        let directory = support::directory();
        let engine = support::engine(&[("backend", backend)]);
        let room = u64::try_from(TENSORS * (TENSOR_BYTES + 4096)).expect("small");
        let buffer = engine.allocate_buffer(room).expect("a buffer");
        let tensors: Vec<Tensor> = (0..TENSORS)
            .map(|index| {
                // An odd length: the tail goes through a bounce block.
                let address = buffer
                    .as_ptr()
                    .wrapping_add(index * (TENSOR_BYTES + 4096) / 4096 * 4096);
                let numel = u64::try_from(TENSOR_BYTES - index).expect("small");
                // SAFETY: inside the buffer, and apart from the other tensors.
                unsafe { Tensor::new(address, numel, Dtype::Bytes) }.expect("a tensor")
            })
            .collect();
        let names: Vec<CString> = (0..TENSORS)
            .map(|index| support::path(directory.path(), &format!("t{index}")))
            .collect();
        let paths: Vec<_> = names.iter().map(CString::as_c_str).collect();
        let mut tickets = Vec::with_capacity(TENSORS);
        let mut round = || {
            for direction in 0..2 {
                for index in 0..TENSORS {
                    let (tensor, path) = (&tensors[index..=index], &paths[index..=index]);
                    let ticket = match direction {
                        0 => engine.swap_out(tensor, path),
                        _ => engine.swap_in(tensor, path),
                    };
                    tickets.push(ticket.expect("a ticket"));
                }
                for ticket in tickets.drain(..) {
                    engine
                        .wait(ticket, None)
                        .expect("a completion")
                        .outcome
                        .expect("success");
                }
            }
        };
        (0..20).for_each(|_| round());
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        (0..ROUNDS).for_each(|_| round());
        let allocations = ALLOCATIONS.load(Ordering::Relaxed) - before;
        let operations = ROUNDS * 2 * u64::try_from(TENSORS).expect("small");
        assert_eq!(allocations, 0, "{backend}: for {operations} requests");
    }
}
