//! Tensors to be read: a safetensors file, or the index of several.

use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::header::{Found, Header, PREFIX_BYTES};
use super::index::{INDEX_BYTES_MAX, INDEX_SUFFIX, Index};
use crate::base::error::{Error, IoFailure, Result};
use crate::base::units::{to_u64, to_usize};
use crate::store::c_path;
use crate::sys::{self, FileKind, OpenFlags};

/// A file, or a set of files, to look tensors up in. Headers are read once; data is not read here.
#[derive(Debug)]
pub(crate) struct Source {
    path: PathBuf,
    index: Option<Index>,
    /// By the names of files; without an index there is one.
    headers: HashMap<String, (CString, Header)>,
}

impl Source {
    /// Opens a file, or, where its name ends in `.index.json`, the index of several.
    ///
    /// # Errors
    /// `Io`; `Corrupt` where it is not what its name says; `NoMemory`.
    pub(crate) fn open(path: &Path) -> Result<Source> {
        let mut source = Source {
            path: path.to_owned(),
            index: None,
            headers: HashMap::new(),
        };
        if path
            .as_os_str()
            .as_bytes()
            .ends_with(INDEX_SUFFIX.as_bytes())
        {
            let file = File::open(path)?;
            if file.len_bytes > INDEX_BYTES_MAX {
                return Err(file.corrupt(format!("{} bytes of an index", file.len_bytes)));
            }
            let json = file.read(0, file.len_bytes)?;
            source.index = Some(Index::parse(&json).map_err(|detail| file.corrupt(detail))?);
        } else {
            source.headers.insert(String::new(), read_header(path)?);
        }
        Ok(source)
    }

    /// The file that has a tensor, and where; `None` where no file has it.
    ///
    /// # Errors
    /// As [`open`](Source::open), for the file that the index names; `Corrupt` where that lacks the tensor.
    pub(crate) fn find(&mut self, tensor: &str) -> Result<Option<(CString, Found)>> {
        let file = match &self.index {
            None => "",
            Some(index) => match index.find(tensor) {
                None => return Ok(None),
                Some(file) => file,
            },
        };
        if !self.headers.contains_key(file) {
            let header = read_header(&self.path.with_file_name(file))?;
            self.headers.insert(file.to_owned(), header);
        }
        let found = self.headers.get(file);
        let found = found.and_then(|(path, header)| Some((path.clone(), header.find(tensor)?)));
        match (&found, &self.index) {
            (None, Some(_)) => Err(corrupt(
                &self.path,
                format!("it says that {file} has the tensor {tensor}, which it has not"),
            )),
            _ => Ok(found),
        }
    }
}

fn read_header(path: &Path) -> Result<(CString, Header)> {
    let file = File::open(path)?;
    let mut prefix = [0; 8];
    if file.len_bytes < PREFIX_BYTES {
        let detail = format!("it has {} bytes: it is no safetensors file", file.len_bytes);
        return Err(file.corrupt(detail));
    }
    prefix.copy_from_slice(&file.read(0, PREFIX_BYTES)?);
    let len_bytes = Header::len_bytes(prefix, file.len_bytes);
    let len_bytes = len_bytes.map_err(|detail| file.corrupt(detail))?;
    let json = file.read(PREFIX_BYTES, len_bytes)?;
    let header = Header::parse(&json, file.len_bytes).map_err(|detail| file.corrupt(detail))?;
    Ok((c_path(path)?, header))
}

/// A file that is open for reading.
struct File<'a> {
    path: &'a Path,
    file: std::os::fd::OwnedFd,
    len_bytes: u64,
}

impl File<'_> {
    /// Symbolic links are followed: the caches that models are kept in consist of them.
    fn open(path: &Path) -> Result<File<'_>> {
        let bytes = path.as_os_str().as_bytes();
        let failed = |errno| Error::io("open", bytes, None, errno, "");
        let path_of_c = c_path(path)?;
        let refuse = |kind| match kind {
            FileKind::Regular => Ok(()),
            FileKind::Directory => Err(failed(libc::EISDIR)),
            FileKind::Link | FileKind::Other => Err(failed(libc::EOPNOTSUPP)),
        };
        // Opening a FIFO would wait for ever.
        refuse(sys::stat_identity(&path_of_c).map_err(failed)?.kind)?;
        let flags = OpenFlags {
            read: true,
            ..OpenFlags::default()
        };
        let file = sys::open(&path_of_c, flags).map_err(failed)?;
        let status = sys::fstat(file.as_fd()).map_err(failed)?;
        refuse(status.kind)?;
        Ok(File {
            path,
            file,
            len_bytes: status.len_bytes,
        })
    }

    /// Reads a range that lies within the file.
    fn read(&self, start: u64, len_bytes: u64) -> Result<Vec<u8>> {
        let len = to_usize(len_bytes)?;
        let mut bytes = Vec::new();
        bytes
            .try_reserve_exact(len)
            .map_err(|_| Error::NoMemory(format!("no room for {len} bytes of a header")))?;
        bytes.resize(len, 0);
        let mut done = 0;
        while done < len {
            let at = start + to_u64(done);
            match sys::read_at(self.file.as_fd(), &mut bytes[done..], at) {
                Ok(0) => return Err(self.corrupt("it became shorter".to_owned())),
                Ok(read) => done += read,
                Err(errno) => {
                    let path = self.path.as_os_str().as_bytes();
                    return Err(Error::io("read", path, Some(at), errno, ""));
                }
            }
        }
        Ok(bytes)
    }

    fn corrupt(&self, detail: String) -> Error {
        corrupt(self.path, detail)
    }
}

fn corrupt(path: &Path, detail: String) -> Error {
    Error::Corrupt(Box::new(IoFailure {
        operation: "read",
        path: path.to_string_lossy().into_owned(),
        offset_bytes: None,
        errno: 0,
        detail,
    }))
}
