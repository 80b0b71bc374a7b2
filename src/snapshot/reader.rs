//! A snapshot that was published: opened, checked, verified.

use std::ffi::CStr;
use std::os::fd::AsFd;
use std::path::Path;

use super::manifest::{BadManifest, MANIFEST_BYTES_MAX, VERSION};
use super::{DATA, MANIFEST, MANIFEST_CHECKSUM, Manifest, StateImage};
use crate::base::checksum::Checksum;
use crate::base::checksum::crc32c;
use crate::base::error::{Error, IoFailure, Result};
use crate::base::units::{MIB, to_u64, to_usize};
use crate::store::{Role, StoreFile, c_path, join, regular_file};
use crate::sys;

/// Bytes that are read at once.
const PIECE_BYTES: u64 = 4 * MIB;

/// A snapshot, opened for reading only. Any thread may call any method.
///
/// What its manifest says was checked against itself and against the length of the data when it
/// was opened; the data is as good as its checksums, which [`Snapshot::verify`] compares.
#[derive(Debug)]
pub struct Snapshot {
    manifest: Manifest,
    data: StoreFile,
}

impl Snapshot {
    /// Opens the snapshot in `directory`.
    ///
    /// # Errors
    /// `Io`: `NOT_FOUND` where there is no snapshot; `Corrupt`; `Unsupported` for a later version
    /// of the form; `NoMemory`.
    pub fn open(directory: &Path) -> Result<Snapshot> {
        let path = c_path(directory)?;
        let failed = |errno| Error::io("open", path.to_bytes(), None, errno, "");
        let opened = sys::open_directory(&path).map_err(failed)?;
        let file = |name| {
            let file = sys::open_to_read_at(opened.as_fd(), name);
            regular_file(file, join(&path, name), Role::Data, None)
        };
        let manifest_file = file(MANIFEST)?.ok_or_else(|| {
            let detail = "there is no manifest.json in it: it is not a snapshot";
            Error::io("open", path.to_bytes(), None, libc::ENOENT, detail)
        })?;
        let gone = |name| {
            Error::Corrupt(Box::new(IoFailure {
                operation: "open",
                path: join(&path, name).to_string_lossy().into_owned(),
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

    /// Reads all states from storage and compares their checksums; `progress` hears of every some
    /// bytes that are done. States that the store kept no checksums of are passed over.
    ///
    /// # Errors
    /// `Checksum` names the state, its place, and both checksums; `Io`, `NoMemory`.
    pub fn verify(&self, progress: &mut dyn FnMut(u64)) -> Result<()> {
        let mut memory = piece_of_memory()?;
        for (index, parameter) in self.manifest.parameters.iter().enumerate() {
            for state in 0..parameter.states.len() {
                self.verify_state(index, state, &mut memory, progress)?;
            }
        }
        Ok(())
    }

    fn verify_state(
        &self,
        index: usize,
        state: usize,
        memory: &mut [u8],
        progress: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let parameter = &self.manifest.parameters[index];
        let len_bytes = self.manifest.image_bytes(state, parameter.numel);
        let StateImage::At {
            offset_bytes,
            checksum,
        } = parameter.states[state]
        else {
            return Ok(());
        };
        let Some(expected) = checksum else {
            progress(len_bytes);
            return Ok(());
        };
        let mut found = Checksum::new();
        self.data.forget_cached(offset_bytes, len_bytes);
        let mut done = 0;
        while done < len_bytes {
            let piece = &mut memory[..to_usize(PIECE_BYTES.min(len_bytes - done))?];
            self.read_exactly(piece, offset_bytes + done)?;
            found.update(piece);
            done += to_u64(piece.len());
            progress(to_u64(piece.len()));
        }
        self.data.forget_cached(offset_bytes, len_bytes);
        match found.finish() {
            found if found == expected => Ok(()),
            found => Err(self.wrong_checksum(index, state, offset_bytes, [found, expected])),
        }
    }

    /// Fills `bytes` from the data.
    pub(super) fn read_exactly(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        match self.data.read_at(bytes, offset)? {
            done if done == bytes.len() => Ok(()),
            _ => Err(self
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

/// Memory that data is read into piece by piece.
pub(super) fn piece_of_memory() -> Result<Vec<u8>> {
    let len = to_usize(PIECE_BYTES)?;
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
