//! Which buffer a pointer lies in.
//!
//! Buffers are kept sorted by address. Foreign ones may overlap and nest, so each entry also
//! knows how far the entries up to it reach: a lookup walks down from the last buffer that begins
//! at or below the pointer, and stops where nothing further down reaches the end of the range.
//! Where buffers do not overlap that is one binary search and one entry.

use std::collections::TryReserveError;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, Weak};

use super::buffer::{Buffer, Inner};
use crate::base::error::{Error, Result};

/// The buffers of one engine, by address.
///
/// Holds none of them alive: a buffer leaves by itself when its last reference goes.
#[derive(Clone, Default)]
pub struct Registry(Arc<RwLock<Table>>);

#[derive(Default)]
struct Table {
    /// Sorted by (start, id).
    entries: Vec<Entry>,
    /// Ids are never used again, so that a buffer that leaves late cannot take a newer one at the
    /// same address with it.
    next_id: u64,
}

struct Entry {
    start: usize,
    end: usize,
    /// The largest `end` of this entry and all before it.
    reach: usize,
    id: u64,
    buffer: Weak<Inner>,
}

/// A buffer's place in a registry; held by the buffer.
pub(super) struct Registration {
    table: Weak<RwLock<Table>>,
    id: u64,
}

impl Registry {
    /// A registry without buffers.
    #[must_use]
    pub fn new() -> Registry {
        Registry::default()
    }

    /// Adds a buffer, for as long as it lives.
    ///
    /// # Errors
    /// `InvalidArgument` where it is in a registry already, `NoMemory` where the table cannot
    /// grow.
    pub fn register(&self, buffer: &Buffer) -> Result<()> {
        let mut table = self.0.write().unwrap_or_else(PoisonError::into_inner);
        table.reserve_one().map_err(|_| {
            Error::NoMemory(format!("a registry of {} buffers", table.entries.len()))
        })?;
        let id = table.next_id;
        let registration = Registration {
            table: Arc::downgrade(&self.0),
            id,
        };
        if buffer.0.registration.set(registration).is_err() {
            return Err(Error::invalid("the buffer is registered already"));
        }
        table.next_id += 1;
        let (start, end) = buffer.0.span();
        table.insert(Entry {
            start,
            end,
            reach: end,
            id,
            buffer: Arc::downgrade(&buffer.0),
        });
        Ok(())
    }

    /// A buffer that holds all of the `len` bytes at `address`. Allocates nothing.
    #[must_use]
    pub fn find(&self, address: usize, len: usize) -> Option<Buffer> {
        let table = self.0.read().unwrap_or_else(PoisonError::into_inner);
        table.find(address, len)
    }

    /// All buffers, by address.
    #[must_use]
    pub fn buffers(&self) -> Vec<Buffer> {
        let table = self.0.read().unwrap_or_else(PoisonError::into_inner);
        table
            .entries
            .iter()
            .filter_map(|entry| entry.buffer.upgrade().map(Buffer))
            .collect()
    }

    /// Bytes of all buffers, each at the length it was asked for.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.buffers().iter().map(Buffer::len_bytes).sum()
    }

    /// How many buffers there are.
    #[must_use]
    pub fn len(&self) -> usize {
        let table = self.0.read().unwrap_or_else(PoisonError::into_inner);
        table.entries.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Registry({} buffers)", self.len())
    }
}

impl Registration {
    /// Takes the buffer, which begins at `address`, out of its registry.
    pub(super) fn remove(&self, address: usize) {
        if let Some(table) = self.table.upgrade() {
            let mut table = table.write().unwrap_or_else(PoisonError::into_inner);
            table.remove(address, self.id);
        }
    }
}

impl Table {
    fn reserve_one(&mut self) -> std::result::Result<(), TryReserveError> {
        self.entries.try_reserve(1)
    }

    fn insert(&mut self, entry: Entry) {
        let at = self.position(entry.start, entry.id);
        self.entries.insert(at, entry);
        self.renew_reach(at);
    }

    fn remove(&mut self, start: usize, id: u64) {
        let at = self.position(start, id);
        if self.entries.get(at).is_some_and(|entry| entry.id == id) {
            self.entries.remove(at);
            self.renew_reach(at);
        }
    }

    /// Where the entry is, or belongs.
    fn position(&self, start: usize, id: u64) -> usize {
        self.entries
            .partition_point(|entry| (entry.start, entry.id) < (start, id))
    }

    /// Corrects `reach` from the entry at `from` on, after a change there.
    fn renew_reach(&mut self, from: usize) {
        let mut reach = match from.checked_sub(1) {
            Some(before) => self.entries[before].reach,
            None => 0,
        };
        for entry in &mut self.entries[from..] {
            reach = reach.max(entry.end);
            entry.reach = reach;
        }
    }

    fn find(&self, address: usize, len: usize) -> Option<Buffer> {
        let end = address.checked_add(len)?;
        let below = self.entries.partition_point(|entry| entry.start <= address);
        self.entries[..below]
            .iter()
            .rev()
            .take_while(|entry| entry.reach >= end)
            // A range without bytes lies in the buffer that holds the byte at its address.
            .filter(|entry| entry.end >= end && entry.end > address)
            // A buffer whose last reference has just gone is on its way out: the next may do.
            // One that is found is handed out, so none is dropped, and thus removed, under the
            // lock held here.
            .find_map(|entry| entry.buffer.upgrade())
            .map(Buffer)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A buffer that is never touched.
    fn at(address: usize, len: u64) -> Buffer {
        // SAFETY: only arithmetic is done with the address.
        unsafe { Buffer::foreign(address, len, None) }.unwrap()
    }

    fn registered(registry: &Registry, address: usize, len: u64) -> Buffer {
        let buffer = at(address, len);
        registry.register(&buffer).unwrap();
        buffer
    }

    #[test]
    fn interior_pointers_are_found_and_neighbours_are_not() {
        let registry = Registry::new();
        let low = registered(&registry, 1000, 100);
        let high = registered(&registry, 1100, 50);
        let finds = |address, len, buffer: &Buffer| {
            let found = registry.find(address, len);
            found.is_some_and(|found| found.is_same(buffer))
        };
        assert!(finds(1000, 100, &low));
        assert!(finds(1099, 1, &low));
        assert!(finds(1099, 0, &low));
        assert!(finds(1100, 1, &high));
        assert!(finds(1100, 50, &high));
        for (address, len) in [(999, 1), (999, 2), (1099, 2), (1100, 51), (1150, 0), (0, 0)] {
            assert!(registry.find(address, len).is_none(), "{address} {len}");
        }
        assert!(registry.find(1000, usize::MAX).is_none());
        assert!(registry.find(usize::MAX, 1).is_none());
    }

    #[test]
    fn nested_buffers_leave_the_one_around_them_to_be_found() {
        let registry = Registry::new();
        let outer = registered(&registry, 1000, 1000);
        let inner = registered(&registry, 1100, 10);
        let twin = registered(&registry, 1100, 10);
        assert!(registry.find(1105, 10).unwrap().is_same(&outer));
        assert!(registry.find(1500, 10).unwrap().is_same(&outer));
        drop(twin);
        assert!(registry.find(1105, 5).unwrap().is_same(&inner));
        drop(inner);
        assert!(registry.find(1105, 5).unwrap().is_same(&outer));
        drop(outer);
        assert!(registry.find(1105, 5).is_none());
        assert!(registry.is_empty());
    }

    #[test]
    fn a_buffer_leaves_alone_when_another_took_its_address() {
        let registry = Registry::new();
        let old = registered(&registry, 1000, 100);
        let new = registered(&registry, 1000, 100);
        drop(old);
        assert_eq!(registry.len(), 1);
        assert!(registry.find(1000, 100).unwrap().is_same(&new));
        assert!(registry.register(&new).is_err());
        drop(registry);
        drop(new);
    }

    #[test]
    fn lookups_race_with_buffers_that_come_and_go() {
        let registry = Registry::new();
        let resident = registered(&registry, 1 << 20, 1 << 20);
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let registry = &registry;
                scope.spawn(move || {
                    for round in 0..500 {
                        let address = (1 << 20) + thread * 8192 + round;
                        let buffer = registered(registry, address, 64);
                        assert!(registry.find(address, 64).is_some());
                        drop(buffer);
                    }
                });
            }
            for _ in 0..2000 {
                // May drop the last reference of another thread's buffer.
                assert!(registry.find((1 << 20) + 8200, 8).is_some());
            }
        });
        assert_eq!(registry.len(), 1);
        drop(resident);
    }

    proptest! {
        #[test]
        fn some_buffer_is_found_exactly_where_one_holds_the_range(
            spans in prop::collection::vec((1..400_usize, 1..120_u64), 0..24),
            gone in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
            queries in prop::collection::vec((0..600_usize, 0..100_usize), 1..40),
        ) {
            let registry = Registry::new();
            let mut alive: Vec<Buffer> = spans
                .into_iter()
                .map(|(start, len)| registered(&registry, start, len))
                .collect();
            for index in gone {
                if !alive.is_empty() {
                    alive.swap_remove(index.index(alive.len()));
                }
            }
            prop_assert_eq!(registry.len(), alive.len());
            for (address, len) in queries {
                let holds = |buffer: &Buffer| {
                    let (start, end) = buffer.0.span();
                    start <= address && address < end && address + len <= end
                };
                let found = registry.find(address, len);
                prop_assert_eq!(found.is_some(), alive.iter().any(holds));
                prop_assert!(found.as_ref().is_none_or(holds));
            }
        }
    }
}
