//! What a snapshot holds, and the JSON that says so. Pure.

use std::borrow::Cow;
use std::fmt::Write;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::base::dtype::Dtype;
use crate::base::error::{Error, Result};
use crate::base::units::{FILE_OFFSET_MAX, round_up, to_u64};
use crate::store::{BLOCK_BYTES, StateSpec, Table, USER_DATA_BYTES_MAX};

const FORMAT: &str = "tensorswap-snapshot";
/// The version of the form. A reader refuses every other one.
pub(crate) const VERSION: u32 = 1;
/// BOUND: no longer manifest is written or read; 10 million parameters take less.
pub(crate) const MANIFEST_BYTES_MAX: u64 = 1 << 30;

/// All states of all parameters as of one step, whichever rank they come from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Manifest {
    /// Steps done.
    pub(crate) step: u64,
    /// The user's own bytes, as committed with that step; 1 MiB at most.
    pub(crate) user_data: Vec<u8>,
    /// The states of every parameter; state 0 is the master parameter.
    pub(crate) states: Vec<StateSpec>,
    /// In the order in which they were first registered.
    pub(crate) parameters: Vec<SnapshotParameter>,
    /// The exact length of `data`, a multiple of [`BLOCK_BYTES`].
    pub(crate) data_bytes: u64,
}

/// One parameter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SnapshotParameter {
    /// As its user chose it.
    pub(crate) id: u64,
    /// The name, where it was given one.
    pub(crate) name: Option<String>,
    /// Elements of each state.
    pub(crate) numel: u64,
    /// Where each state lies, in the order of [`Manifest::states`].
    pub(crate) states: Vec<StateImage>,
}

/// One state of one parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    from = "Option<(u64, Option<u32>)>",
    into = "Option<(u64, Option<u32>)>"
)]
pub(crate) enum StateImage {
    /// All zeros; takes no space.
    Zero,
    /// Its elements, in the type on storage, lie in `data`.
    At {
        /// From here on; a multiple of [`BLOCK_BYTES`].
        offset_bytes: u64,
        /// CRC-32C of the elements; `None` where the store kept none.
        checksum: Option<u32>,
    },
}

impl From<Option<(u64, Option<u32>)>> for StateImage {
    fn from(place: Option<(u64, Option<u32>)>) -> StateImage {
        place.map_or(StateImage::Zero, |(offset_bytes, checksum)| {
            StateImage::At {
                offset_bytes,
                checksum,
            }
        })
    }
}

impl From<StateImage> for Option<(u64, Option<u32>)> {
    fn from(image: StateImage) -> Option<(u64, Option<u32>)> {
        match image {
            StateImage::Zero => None,
            StateImage::At {
                offset_bytes,
                checksum,
            } => Some((offset_bytes, checksum)),
        }
    }
}

/// A manifest as its JSON has it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Form<'a> {
    format: Cow<'a, str>,
    version: u32,
    step: u64,
    data_bytes: u64,
    /// In hexadecimal.
    user_data: Cow<'a, str>,
    states: Vec<StateForm<'a>>,
    parameters: Cow<'a, [SnapshotParameter]>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StateForm<'a> {
    name: Cow<'a, str>,
    dtype: Cow<'a, str>,
    disk_dtype: Cow<'a, str>,
}

/// What is read first: in another version the rest may look different.
#[derive(Deserialize)]
struct Head<'a> {
    format: Cow<'a, str>,
    version: u32,
}

/// Why a manifest cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BadManifest {
    /// It is none, or makes no sense; why.
    Damaged(String),
    /// It is in a version that this build does not know.
    Version(u32),
}

impl Manifest {
    /// Bytes of one state of a parameter with so many elements, as it lies in `data`.
    pub(crate) fn image_bytes(&self, state: usize, numel: u64) -> u64 {
        // Cannot overflow where the manifest was checked.
        numel * self.states[state].disk_dtype.size_bytes()
    }

    /// Bytes of all images that lie in `data`, without what fills them up.
    pub(crate) fn images_bytes(&self) -> u64 {
        let images = self.parameters.iter().flat_map(|parameter| {
            let states = parameter.states.iter().enumerate();
            let present = states.filter(|(_, image)| **image != StateImage::Zero);
            present.map(|(state, _)| self.image_bytes(state, parameter.numel))
        });
        images.sum()
    }

    /// The JSON, in one line.
    ///
    /// # Errors
    /// `Internal` for a manifest that no reader would take.
    pub(crate) fn encode(&self) -> Result<Vec<u8>> {
        let no_manifest =
            |why: String| Error::Internal(format!("no manifest of a snapshot: {why}"));
        self.check().map_err(no_manifest)?;
        let json =
            serde_json::to_vec(&Form::of(self)).map_err(|error| no_manifest(error.to_string()))?;
        match to_u64(json.len()) <= MANIFEST_BYTES_MAX {
            true => Ok(json),
            false => Err(no_manifest(format!("{} bytes of JSON", json.len()))),
        }
    }

    /// Reads the JSON; whatever comes back makes sense.
    pub(crate) fn decode(json: &[u8]) -> Result<Manifest, BadManifest> {
        let damaged = |error: serde_json::Error| BadManifest::Damaged(error.to_string());
        let head: Head<'_> = serde_json::from_slice(json).map_err(damaged)?;
        if head.format != FORMAT {
            let why = "its format is not that of a snapshot";
            return Err(BadManifest::Damaged(why.to_owned()));
        }
        if head.version != VERSION {
            return Err(BadManifest::Version(head.version));
        }
        let form: Form<'_> = serde_json::from_slice(json).map_err(damaged)?;
        let manifest = form.manifest().map_err(BadManifest::Damaged)?;
        manifest.check().map_err(BadManifest::Damaged)?;
        Ok(manifest)
    }

    /// Whether it is one that a store could have: all counts, names, sizes and places.
    fn check(&self) -> Result<(), String> {
        if to_u64(self.user_data.len()) > USER_DATA_BYTES_MAX {
            return Err("too much user data".to_owned());
        }
        if self.data_bytes > FILE_OFFSET_MAX || !self.data_bytes.is_multiple_of(BLOCK_BYTES) {
            return Err(format!("no data file has {} bytes", self.data_bytes));
        }
        // The rules for names, ids and sizes are those of the store that it is restored into.
        let mut table = Table::default();
        for state in &self.states {
            let added = table.add_state(state.clone());
            added.map_err(|error| error.to_string())?;
        }
        let mut taken = Vec::new();
        for parameter in &self.parameters {
            let name = parameter.name.as_deref();
            let added = table.add_record(parameter.id, name, parameter.numel);
            added.map_err(|error| format!("parameter {}: {error}", parameter.id))?;
            if parameter.states.len() != self.states.len() {
                return Err(format!(
                    "parameter {} has {} states instead of {}",
                    parameter.id,
                    parameter.states.len(),
                    self.states.len()
                ));
            }
            for (state, image) in parameter.states.iter().enumerate() {
                let len_bytes = self.image_bytes(state, parameter.numel);
                if let Some(place) = self.place(*image, len_bytes)? {
                    taken.push(place);
                }
            }
        }
        taken.sort_unstable_by_key(|place| place.start);
        match taken.windows(2).find(|two| two[0].end > two[1].start) {
            Some(two) => Err(format!("two states lie at {}", two[1].start)),
            None => Ok(()),
        }
    }

    /// The blocks that an image takes in `data`; none where it is zero.
    fn place(&self, image: StateImage, len_bytes: u64) -> Result<Option<Range<u64>>, String> {
        let StateImage::At {
            offset_bytes: start,
            ..
        } = image
        else {
            return Ok(None);
        };
        let end = start
            .checked_add(round_up(len_bytes, BLOCK_BYTES))
            .filter(|end| *end <= self.data_bytes && start.is_multiple_of(BLOCK_BYTES));
        match end {
            Some(end) => Ok(Some(start..end)),
            None => Err(format!("no state of {len_bytes} bytes can lie at {start}")),
        }
    }
}

impl Form<'_> {
    fn of(manifest: &Manifest) -> Form<'_> {
        let states = manifest.states.iter().map(|state| StateForm {
            name: Cow::Borrowed(&state.name),
            dtype: Cow::Borrowed(state.dtype.name()),
            disk_dtype: Cow::Borrowed(state.disk_dtype.name()),
        });
        Form {
            format: Cow::Borrowed(FORMAT),
            version: VERSION,
            step: manifest.step,
            data_bytes: manifest.data_bytes,
            user_data: Cow::Owned(hexadecimal(&manifest.user_data)),
            states: states.collect(),
            parameters: Cow::Borrowed(&manifest.parameters),
        }
    }

    fn manifest(self) -> Result<Manifest, String> {
        let states = self.states.into_iter().map(|state| {
            Ok(StateSpec {
                dtype: dtype(&state.dtype)?,
                disk_dtype: dtype(&state.disk_dtype)?,
                name: state.name.into_owned(),
            })
        });
        Ok(Manifest {
            step: self.step,
            user_data: bytes_of(&self.user_data).ok_or("user_data is not hexadecimal")?,
            states: states.collect::<Result<_, String>>()?,
            parameters: self.parameters.into_owned(),
            data_bytes: self.data_bytes,
        })
    }
}

fn dtype(name: &str) -> Result<Dtype, String> {
    let found = Dtype::ALL.iter().find(|dtype| dtype.name() == name);
    found
        .copied()
        .ok_or_else(|| format!("no dtype is called \"{name}\""))
}

fn hexadecimal(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// `None` where the text is not what [`hexadecimal`] writes.
fn bytes_of(text: &str) -> Option<Vec<u8>> {
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let bytes = pairs
        .iter()
        .map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?));
    bytes.collect::<Option<_>>().filter(|_| rest.is_empty())
}
