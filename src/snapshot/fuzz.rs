//! What a fuzzer calls: the manifest's reader, on any bytes.

use super::{Manifest, StateImage};
use crate::store::BLOCK_BYTES;

/// Reads `bytes` as a manifest.
///
/// # Panics
/// Where one is accepted that leads out of its data, or twice to the same, or that does not come
/// back when it is written: that is what fuzzing looks for.
pub(crate) fn read_any_manifest(bytes: &[u8]) {
    let Ok(manifest) = Manifest::decode(bytes) else {
        return;
    };
    let mut places = Vec::new();
    for parameter in &manifest.parameters {
        assert_eq!(parameter.states.len(), manifest.states.len());
        for (state, image) in parameter.states.iter().enumerate() {
            if let StateImage::At { offset_bytes, .. } = *image {
                assert_eq!(offset_bytes % BLOCK_BYTES, 0);
                let end = offset_bytes + manifest.image_bytes(state, parameter.numel);
                places.push((offset_bytes, end));
            }
        }
    }
    places.sort_unstable();
    assert!(places.windows(2).all(|two| two[0].1 <= two[1].0));
    assert!(
        places
            .last()
            .is_none_or(|last| last.1 <= manifest.data_bytes)
    );
    let json = manifest.encode();
    assert_eq!(
        json.ok().map(|json| Manifest::decode(&json)),
        Some(Ok(manifest))
    );
}
