//! Memory that is filled, moved and compared.

/// Each block of this size carries the number of its round.
const STAMP_BYTES: usize = 4096;

/// Memory that belongs to somebody else, seen as a slice.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Area {
    start: *mut u8,
    len: usize,
}

impl Area {
    /// SAFETY: the memory must stay valid, and not be touched otherwise while a slice of it is
    /// alive, as long as the area is used.
    pub(crate) unsafe fn new(start: *mut u8, len: usize) -> Area {
        Area { start, len }
    }

    pub(crate) fn as_ptr(self) -> *mut u8 {
        self.start
    }

    pub(crate) fn len(self) -> usize {
        self.len
    }

    /// The part that belongs to file `index`.
    pub(crate) fn part(self, index: usize, len: usize) -> Area {
        assert!((index + 1) * len <= self.len, "a part outside of its area");
        Area {
            start: self.start.wrapping_add(index * len),
            len,
        }
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        // SAFETY: `new`'s contract: valid, and nobody writes: rounds are strictly sequential.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above; one thread makes one slice at a time.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }

    /// Fills with random bytes that no compression or deduplication shrinks.
    pub(crate) fn randomize(&mut self, seed: u64) {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        for word in self.as_mut_slice().chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
    }

    /// Makes every block differ from that of any other round.
    pub(crate) fn stamp(&mut self, round: u64) {
        for (index, block) in (0_u64..).zip(self.as_mut_slice().chunks_exact_mut(STAMP_BYTES)) {
            block[..8].copy_from_slice(&(round << 32 | index).to_le_bytes());
        }
    }
}
