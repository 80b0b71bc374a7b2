use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Buffer, BufferKind, PageKind, Reclaim, Reclaimed, ReleaseHook};
use crate::base::config::Policy;
use crate::base::error::Status;
use crate::base::sync::{Mutex, lock};
use crate::base::units::{GIB, to_u64};

/// A buffer over leaked memory, which counts how often it is released.
fn counted(len: usize) -> (Buffer, Arc<AtomicUsize>) {
    let bytes: &'static mut [u8] = Box::leak(vec![0_u8; len].into_boxed_slice());
    let address = bytes.as_mut_ptr().expose_provenance();
    let count = Arc::new(AtomicUsize::new(0));
    let hook_count = Arc::clone(&count);
    let hook: ReleaseHook = Box::new(move |start, len_bytes| {
        assert_eq!((start.addr(), len_bytes), (address, to_u64(len)));
        hook_count.fetch_add(1, Ordering::Relaxed);
    });
    // SAFETY: leaked, so alive for ever; touched by nothing.
    let buffer = unsafe { Buffer::foreign(address, to_u64(len), Some(hook)) }.unwrap();
    (buffer, count)
}

/// Keeps what it is given, as a ring does that has not let go yet.
#[derive(Default)]
struct Keeper(Mutex<Vec<Reclaimed>>);

impl Reclaim for Keeper {
    fn reclaim(&self, parts: Reclaimed) {
        lock(&self.0).push(parts);
    }
}

#[test]
fn the_hook_runs_once_when_the_last_of_many_threads_lets_go() {
    for _ in 0..20 {
        let (buffer, count) = counted(100);
        let latch = buffer.released_latch();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                let clone = buffer.clone();
                scope.spawn(move || {
                    for _ in 0..100 {
                        drop(clone.clone());
                    }
                    drop(clone);
                });
            }
            assert_eq!(count.load(Ordering::Relaxed), 0);
            assert!(!latch.is_open());
            drop(buffer);
        });
        latch.wait();
        assert_eq!(count.load(Ordering::Relaxed), 1);
    }
}

#[test]
fn a_registered_buffer_is_released_where_its_parts_are_dropped() {
    let keeper = Arc::new(Keeper::default());
    let (buffer, count) = counted(100);
    assert!(buffer.set_reclaim(Arc::clone(&keeper) as Arc<dyn Reclaim>));
    assert!(!buffer.set_reclaim(Arc::new(Keeper::default())));
    buffer.set_ring_slot(7);
    let latch = buffer.released_latch();
    drop(buffer);
    assert_eq!(count.load(Ordering::Relaxed), 0);
    assert!(!latch.is_open());

    let parts = lock(&keeper.0).pop().unwrap();
    assert_eq!((parts.ring_slot(), parts.ring_piece_count()), (Some(7), 1));
    std::thread::scope(|scope| {
        scope.spawn(|| latch.wait());
        drop(parts);
    });
    assert_eq!(count.load(Ordering::Relaxed), 1);
}

#[test]
fn a_buffer_without_a_slot_is_released_in_place() {
    let keeper = Arc::new(Keeper::default());
    let (buffer, count) = counted(100);
    buffer.set_reclaim(Arc::clone(&keeper) as Arc<dyn Reclaim>);
    buffer.set_ring_slot(3);
    buffer.clear_ring_slot();
    drop(buffer);
    assert_eq!(count.load(Ordering::Relaxed), 1);
    assert!(lock(&keeper.0).is_empty());
}

#[test]
fn a_hook_that_panics_opens_the_latch_all_the_same() {
    let mut byte = 0_u8;
    let hook: ReleaseHook = Box::new(|_, _| panic!("expected by the test"));
    // SAFETY: nothing touches the byte.
    let buffer = unsafe { Buffer::foreign((&raw mut byte).addr(), 1, Some(hook)) }.unwrap();
    let latch = buffer.released_latch();
    drop(buffer);
    assert!(latch.is_open());
}

#[test]
fn impossible_foreign_memory_is_refused() {
    let status = |address, len| {
        // SAFETY: none of these becomes a buffer.
        let made = unsafe { Buffer::foreign(address, len, None) };
        made.unwrap_err().status()
    };
    assert_eq!(status(0, 10), Status::NullArgument);
    assert_eq!(status(4096, 0), Status::InvalidArgument);
    assert_eq!(status(4096, u64::MAX), Status::InvalidArgument);
    assert_eq!(status(usize::MAX, 2), Status::InvalidArgument);
}

#[test]
fn owned_memory_is_usable_up_to_its_capacity() {
    let buffer = Buffer::allocate(5000, Policy::Off, Policy::Prefer).unwrap();
    assert_eq!(buffer.len_bytes(), 5000);
    assert!(buffer.capacity_bytes() >= 8192);
    assert_eq!(buffer.kind(), BufferKind::Owned(PageKind::Base));
    buffer.whole_range().copy_into(5000, &[1; 3000]).unwrap();
    assert!(buffer.range().copy_into(5000, &[1]).is_err());
    assert!(buffer.is_same(&buffer.clone()));
    let latch = buffer.released_latch();
    drop(buffer);
    assert!(latch.is_open());
}

#[test]
fn long_buffers_have_a_slot_for_every_gibibyte() {
    let address = 0x10_0000_usize;
    let gib = usize::try_from(GIB).unwrap();
    // SAFETY: only arithmetic is done with it; nothing touches the memory.
    let buffer = unsafe { Buffer::foreign(address, 2 * GIB + 5, None) }.unwrap();
    assert_eq!(buffer.ring_piece_count(), 3);
    assert_eq!(buffer.ring_piece(0), Some((address, gib)));
    assert_eq!(buffer.ring_piece(2), Some((address + 2 * gib, 5)));
    assert_eq!(buffer.ring_piece(3), None);
    assert_eq!(buffer.ring_slot_of(address, 1), None);
    buffer.set_ring_slot(10);
    assert_eq!(buffer.ring_slot_of(address, gib), Some(10));
    assert_eq!(buffer.ring_slot_of(address, gib + 1), None);
    assert_eq!(buffer.ring_slot_of(address + gib, gib), Some(11));
    assert_eq!(buffer.ring_slot_of(address + 2 * gib, 5), Some(12));
    assert_eq!(buffer.ring_slot_of(address + 2 * gib, 6), None);
    assert_eq!(buffer.ring_slot_of(address - 1, 1), None);
    assert_eq!(buffer.ring_slot_of(address + 1, usize::MAX), None);
}
