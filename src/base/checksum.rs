//! CRC-32C, the checksum of what lies in a store.
//!
//! The polynomial of Castagnoli, as in iSCSI (RFC 3720, appendix B.4), ext4 and NVMe. The crate
//! below folds with carry-less multiplication (Gopal et al., "Fast CRC computation for generic
//! polynomials using PCLMULQDQ", Intel 2009), on x86-64 and aarch64, where the processor has it.

use crc_fast::{CrcAlgorithm, Digest};

use super::cache::{TOUCH_BYTES, touch};

/// Shorter input is mostly in the cache already.
const COLD_FROM_BYTES: usize = 8 * TOUCH_BYTES;

/// The CRC-32C of `bytes`.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    let mut checksum = Checksum::new();
    checksum.update(bytes);
    checksum.finish()
}

/// The CRC-32C of bytes that come part by part.
#[derive(Debug)]
pub(crate) struct Checksum(Digest);

impl Checksum {
    pub(crate) fn new() -> Checksum {
        Checksum(Digest::new(CrcAlgorithm::Crc32Iscsi))
    }

    /// Goes on with `part`.
    ///
    /// Folding is several times faster than memory and reads straight through, so that on long
    /// input it would mostly wait; there each block is brought into the cache first.
    pub(crate) fn update(&mut self, part: &[u8]) {
        if part.len() < COLD_FROM_BYTES {
            return self.0.update(part);
        }
        for block in part.chunks(TOUCH_BYTES) {
            touch(block);
            self.0.update(block);
        }
    }

    pub(crate) fn finish(self) -> u32 {
        // A 32-bit checksum comes in the low half of 64 bits.
        (self.0.finalize() & 0xffff_ffff) as u32
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bit by bit, from the definition: reflected, polynomial 0x1edc6f41.
    fn by_definition(bytes: &[u8]) -> u32 {
        let mut crc = u32::MAX;
        for byte in bytes {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = (crc >> 1) ^ (0x82f6_3b78 & 0u32.wrapping_sub(crc & 1));
            }
        }
        !crc
    }

    #[test]
    fn the_published_vectors_come_out() {
        // RFC 3720, appendix B.4, and the check value of the CRC catalogue.
        let ascending: Vec<u8> = (0..32).collect();
        let descending: Vec<u8> = (0..32).rev().collect();
        for (bytes, crc) in [
            (&b"123456789"[..], 0xe306_9283),
            (&[], 0),
            (&[0; 32], 0x8a91_36aa),
            (&[0xff; 32], 0x62a8_ab43),
            (&ascending, 0x46dd_794e),
            (&descending, 0x113f_db5c),
        ] {
            assert_eq!(crc32c(bytes), crc, "{bytes:?}");
            assert_eq!(by_definition(bytes), crc, "{bytes:?}");
        }
    }

    #[test]
    fn long_input_in_blocks_gives_the_same() {
        for len in [
            COLD_FROM_BYTES - 1,
            COLD_FROM_BYTES,
            COLD_FROM_BYTES + 1,
            9 * TOUCH_BYTES - 3,
        ] {
            let bytes: Vec<u8> = (0..len).map(|at| (at * 31 + at / 977) as u8).collect();
            assert_eq!(crc32c(&bytes), by_definition(&bytes), "{len}");
        }
    }

    proptest! {
        #[test]
        fn any_length_at_any_address_gives_the_same(
            bytes in prop::collection::vec(any::<u8>(), 0..2000),
            start in 0..64_usize,
        ) {
            let bytes = &bytes[start.min(bytes.len())..];
            prop_assert_eq!(crc32c(bytes), by_definition(bytes));
        }

        #[test]
        fn one_changed_bit_changes_it(
            mut bytes in prop::collection::vec(any::<u8>(), 1..500),
            at in any::<prop::sample::Index>(),
            bit in 0..8_u32,
        ) {
            let before = crc32c(&bytes);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert_ne!(crc32c(&bytes), before);
        }
    }
}
