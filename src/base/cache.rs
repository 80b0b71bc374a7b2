//! Bringing memory into the cache faster than the processor does by itself.
//!
//! The processor prefetches within a page at most, so a straight read over cold memory waits at
//! every page. Reading a line of each of several pages in turn keeps more misses in flight: CRC-32C
//! over 96 MiB becomes a third faster (14 instead of 10 GiB/s on a Sapphire Rapids server in
//! November 2026), widening in place, which goes backward, by half.

const PAGE_BYTES: usize = 4096;
const LINE_BYTES: usize = 64;

/// How much to touch at once: eight pages, which stay in the first cache until they are used.
pub(crate) const TOUCH_BYTES: usize = 8 * PAGE_BYTES;

/// Reads one byte of each line of the whole pages in `bytes`, a line of each page in turn. Meant
/// for [`TOUCH_BYTES`] that are about to be worked on; costs little where they are cached already.
pub(crate) fn touch(bytes: &[u8]) {
    let (pages, _) = bytes.as_chunks::<PAGE_BYTES>();
    let mut all = 0;
    for line in (0..PAGE_BYTES).step_by(LINE_BYTES) {
        for page in pages {
            all |= page[line];
        }
    }
    // Without a use the reads would be left out.
    std::hint::black_box(all);
}
