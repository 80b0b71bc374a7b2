//! A snapshot that was published: opened, checked, verified.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use super::manifest::{BadManifest, MANIFEST_BYTES_MAX, VERSION};
use super::{DATA, MANIFEST, MANIFEST_CHECKSUM, Manifest, StateImage};
use crate::base::checksum::{Checksum, crc32c};
use crate::base::error::{Error, IoFailure, Result};
use crate::base::units::{MIB, to_u64, to_usize};
use crate::store::{Role, StoreFile, StoredState, absolute, c_path, join, regular_file};
use crate::sys;

/// Bytes that are read at once.
pub(super) const PIECE_BYTES: u64 = 4 * MIB;

/// A snapshot, opened for reading only. Any thread may call any method.
///
/// What its manifest says was checked against itself and against the length of the data when it
/// was opened; the data is as good as its checksums, which [`Snapshot::verify`] compares.
#[derive(Debug)]
pub struct Snapshot {
    manifest: Manifest,
    data: StoreFile,
}

/// A parameter as a snapshot holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SavedParameter<'a> {
    /// The id that its user chose.
    pub id: u64,
    /// The name, where it was given one.
    pub name: Option<&'a str>,
    /// Elements of each state.
    pub numel: u64,
    /// Bytes that its states take, without those that are zero.
    pub images_bytes: u64,
    /// A bit for each state that is all zeros and takes no space.
    pub zero_states: u8,
    /// Whether there are checksums of all others.
    pub is_checked: bool,
}

impl Snapshot {
    /// Opens the snapshot in `directory`.
    ///
    /// # Errors
    /// `Io`: `NOT_FOUND` where there is no snapshot; `Corrupt`; `Unsupported` for a later version
    /// of the form; `NoMemory`.
    pub fn open(directory: &Path) -> Result<Snapshot> {
        let path = c_path(&absolute(directory)?)?;
        let failed = |errno| {
            let detail = match errno {
                libc::ENOENT => "there is no snapshot of that name",
                _ => "",
            };
            Error::io("open", path.to_bytes(), None, errno, detail)
        };
        Snapshot::open_in(&sys::open_directory(&path).map_err(failed)?, &path)
    }

    /// As [`Snapshot::open`], of an open directory; `path` is for messages and for the engine.
    pub(super) fn open_in(directory: &OwnedFd, path: &CStr) -> Result<Snapshot> {
        let file = |name| {
            let file = sys::open_to_read_at(directory.as_fd(), name);
            regular_file(file, join(path, name), Role::Data, None)
        };
        let manifest_file = file(MANIFEST)?.ok_or_else(|| {
            let detail = "there is no manifest.json in it: it is not a snapshot";
            Error::io("open", path.to_bytes(), None, libc::ENOENT, detail)
        })?;
        let gone = |name| {
            Error::Corrupt(Box::new(IoFailure {
                operation: "open",
                path: join(path, name).to_string_lossy().into_owned(),
                offset_bytes: None,
                errno: libc::ENOENT,
                detail: "a part of the snapshot is gone".to_owned(),
            }))
        };
        let checksum = file(MANIFEST_CHECKSUM)?.ok_or_else(|| gone(MANIFEST_CHECKSUM))?;
        let manifest = read_manifest(&manifest_file, &checksum)?;
        let data = file(DATA)?.ok_or_else(|| gone(DATA))?;
        let data_bytes = data.len_bytes()?;
        if data_bytes != manifest.data_bytes {
            let expected = manifest.data_bytes;
            let detail = format!("the file has {data_bytes} bytes instead of {expected}");
            return Err(data.corrupt(data_bytes.min(expected), detail));
        }
        Ok(Snapshot { manifest, data })
    }

    /// What it holds; checked.
    pub(crate) fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Where its data lies.
    pub(crate) fn data_path(&self) -> &CStr {
        self.data.path()
    }

    /// Where its data lies, open for reading.
    pub(crate) fn data(&self) -> &StoreFile {
        &self.data
    }

    /// Steps done.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.manifest.step
    }

    /// The user's own bytes, as committed with that step.
    #[must_use]
    pub fn user_data(&self) -> &[u8] {
        &self.manifest.user_data
    }

    /// Length of the data.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        self.manifest.data_bytes
    }

    /// Its states; the first one is the master parameter.
    pub fn states(&self) -> impl ExactSizeIterator<Item = StoredState<'_>> {
        let states = self.manifest.states.iter();
        states.map(|state| StoredState {
            name: &state.name,
            dtype: state.dtype,
            disk_dtype: state.disk_dtype,
        })
    }

    /// Its parameters, in the order in which they were first registered.
    pub fn parameters(&self) -> impl ExactSizeIterator<Item = SavedParameter<'_>> {
        let parameters = self.manifest.parameters.iter();
        parameters.map(|parameter| {
            let states = || parameter.states.iter().enumerate();
            let zero = states().filter(|(_, image)| **image == StateImage::Zero);
            let present = states().filter(|(_, image)| **image != StateImage::Zero);
            let bytes = |(state, _)| self.manifest.image_bytes(state, parameter.numel);
            SavedParameter {
                id: parameter.id,
                name: parameter.name.as_deref(),
                numel: parameter.numel,
                images_bytes: present.map(bytes).sum(),
                zero_states: zero.fold(0, |set, (state, _)| set | 1 << state),
                is_checked: states()
                    .all(|(_, image)| !matches!(image, StateImage::At { checksum: None, .. })),
            }
        })
    }

    /// Reads all states from storage and compares their checksums; `progress` hears of every some
    /// bytes that are done. States that the store kept no checksums of are passed over.
    ///
    /// # Errors
    /// `Checksum` names the state, its place, and both checksums; `Io`, `NoMemory`.
    pub fn verify(&self, progress: &mut dyn FnMut(u64)) -> Result<()> {
        let mut parameters = 0..self.manifest.parameters.len();
        parameters.try_for_each(|index| self.verify_parameter(index, progress))
    }

    /// As [`Snapshot::verify`], of the parameter `index`.
    ///
    /// # Errors
    /// As [`Snapshot::verify`]; `InvalidArgument` where there is no such parameter.
    pub fn verify_parameter(&self, index: usize, progress: &mut dyn FnMut(u64)) -> Result<()> {
        let parameter = self.manifest.parameters.get(index);
        let parameter = parameter.ok_or_else(|| Error::invalid("no such parameter"))?;
        for (state, image) in parameter.states.iter().enumerate() {
            let StateImage::At {
                offset_bytes,
                checksum: Some(expected),
            } = *image
            else {
                continue;
            };
            let len_bytes = self.manifest.image_bytes(state, parameter.numel);
            let found = self.checksum(offset_bytes, len_bytes, progress)?;
            if found != expected {
                let checksums = [found, expected];
                return Err(self.wrong_checksum(index, state, offset_bytes, checksums));
            }
        }
        Ok(())
    }

    /// The checksum of a part of the data, as it is on storage.
    fn checksum(&self, offset: u64, len_bytes: u64, progress: &mut dyn FnMut(u64)) -> Result<u32> {
        let mut memory = piece_of_memory(len_bytes)?;
        self.data.forget_cached(offset, len_bytes);
        let mut checksum = Checksum::new();
        let mut done = 0;
        while done < len_bytes {
            let piece = &mut memory[..to_usize(PIECE_BYTES.min(len_bytes - done))?];
            self.read_once(piece, offset + done)?;
            checksum.update(piece);
            done += to_u64(piece.len());
            progress(to_u64(piece.len()));
        }
        Ok(checksum.finish())
    }

    /// Fills `bytes` from the data, which does not stay in the page cache.
    pub(super) fn read_once(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        let done = self.data.read_at(bytes, offset)?;
        self.data.forget_cached(offset, to_u64(done));
        match done == bytes.len() {
            true => Ok(()),
            false => Err(self
                .data
                .corrupt(offset, "the file ends in the middle of a state")),
        }
    }

    /// The error for a state whose elements are not those that were written.
    pub(crate) fn wrong_checksum(
        &self,
        index: usize,
        state: usize,
        offset_bytes: u64,
        [found, expected]: [u32; 2],
    ) -> Error {
        let parameter = &self.manifest.parameters[index];
        let name = parameter.name.as_deref();
        let name = name.map_or_else(String::new, |name| format!(" ({name})"));
        let (state, id) = (&self.manifest.states[state].name, parameter.id);
        Error::Checksum(Box::new(IoFailure {
            operation: "verify",
            path: self.data.path().to_string_lossy().into_owned(),
            offset_bytes: Some(offset_bytes),
            errno: 0,
            detail: format!(
                "{state} of parameter {id}{name} has the checksum {found:08x}, and \
                 {expected:08x} was recorded"
            ),
        }))
    }
}

/// Memory that so many bytes of data are read into piece by piece.
pub(super) fn piece_of_memory(len_bytes: u64) -> Result<Vec<u8>> {
    let len = to_usize(PIECE_BYTES.min(len_bytes))?;
    let mut memory = Vec::new();
    memory
        .try_reserve_exact(len)
        .map_err(|_| Error::NoMemory(format!("{len} bytes to read a snapshot")))?;
    memory.resize(len, 0);
    Ok(memory)
}

fn read_manifest(file: &StoreFile, checksum: &StoreFile) -> Result<Manifest> {
    if file.len_bytes()? > MANIFEST_BYTES_MAX {
        return Err(file.corrupt(MANIFEST_BYTES_MAX, "too long for a manifest"));
    }
    let json = file.read_up_to(MANIFEST_BYTES_MAX)?;
    let (found, expected) = (format!("{:08x}\n", crc32c(&json)), checksum.read_up_to(64)?);
    if found.as_bytes() != expected {
        let expected = String::from_utf8_lossy(&expected);
        let detail = format!(
            "the checksum is {} instead of \"{}\"",
            found.trim_end(),
            expected.trim_end()
        );
        return Err(file.corrupt(0, detail));
    }
    Manifest::decode(&json).map_err(|bad| match bad {
        BadManifest::Damaged(why) => file.corrupt(0, why),
        BadManifest::Version(version) => Error::Unsupported {
            message: format!(
                "{} is in version {version} of the form of snapshots; this build knows {VERSION}",
                file.path().to_string_lossy()
            ),
            errno: 0,
        },
    })
}
