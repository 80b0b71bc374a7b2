//! Plain memory of the library's own, for what no transfer touches directly.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

use super::range::MemoryRange;
use crate::base::error::{Error, Result};
use crate::base::units::{to_u64, to_usize};

/// Blocks begin at a multiple of a cache line.
const ALIGN_BYTES: usize = 64;

/// Memory from the heap, zeroed at first, neither pinned nor known to any ring. Freed when
/// dropped.
#[derive(Debug)]
pub(crate) struct Block {
    start: NonNull<u8>,
    layout: Layout,
}

impl Block {
    /// Allocates `len_bytes`, at least one byte.
    ///
    /// # Errors
    /// `NoMemory`; `InvalidArgument` for a length that cannot be addressed.
    pub(crate) fn allocate(len_bytes: u64) -> Result<Block> {
        let layout = Layout::from_size_align(to_usize(len_bytes.max(1))?, ALIGN_BYTES)
            .map_err(|_| Error::invalid(format!("{len_bytes} bytes cannot be addressed here")))?;
        // SAFETY: the layout's size is at least 1.
        let start = unsafe { alloc_zeroed(layout) };
        match NonNull::new(start) {
            Some(start) => Ok(Block { start, layout }),
            None => Err(Error::NoMemory(format!(
                "{len_bytes} bytes could not be allocated"
            ))),
        }
    }

    /// Length in bytes.
    pub(crate) fn len_bytes(&self) -> u64 {
        to_u64(self.layout.size())
    }

    /// The memory.
    ///
    /// INVARIANT: whoever uses the range keeps this block meanwhile, and no two use the same
    /// bytes at a time unless both only read.
    pub(crate) fn range(&self) -> MemoryRange {
        // SAFETY: one live allocation until the block is dropped; who may touch it when is the
        // invariant above, which the owner of the block keeps.
        unsafe { MemoryRange::new(self.start.as_ptr(), self.layout.size()) }
    }
}

// SAFETY: the block owns its memory alone, as a `Box` does; it hands out no references.
unsafe impl Send for Block {}
// SAFETY: as above; through a shared block only an address can be had.
unsafe impl Sync for Block {}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated in `allocate` with this very layout, and freed only here.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_zeroed_aligned_and_writable() {
        for len in [0, 1, 63, 4097, 1 << 20] {
            let block = Block::allocate(len).unwrap();
            let range = block.range();
            assert_eq!(block.len_bytes(), len.max(1));
            assert_eq!(range.address() % ALIGN_BYTES, 0);
            assert!(range.inspect(|bytes| bytes.iter().all(|byte| *byte == 0)));
            range.update(|bytes| bytes.fill(7));
            assert!(range.inspect(|bytes| bytes.iter().all(|byte| *byte == 7)));
        }
    }

    #[test]
    fn absurd_lengths_are_errors() {
        assert!(matches!(Block::allocate(1 << 62), Err(Error::NoMemory(_))));
        assert!(Block::allocate(u64::MAX).is_err());
    }
}
