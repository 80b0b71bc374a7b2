//! Files and directories in memory, each file with what it held before it was last written over.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

use libc::{EEXIST, EISDIR, ENOENT, ENOTDIR, ENOTEMPTY};

pub const ROOT: u64 = 1;

#[derive(Debug)]
pub enum Content {
    Directory(BTreeMap<OsString, u64>),
    File {
        bytes: Vec<u8>,
        /// What the last write of each byte found there.
        before: Vec<u8>,
    },
}

#[derive(Debug)]
pub struct Node {
    /// The last name it was given.
    pub name: String,
    pub content: Content,
    pub links: u32,
    pub mode: u16,
}

/// Nodes by their numbers, which are not given again.
#[derive(Debug)]
pub struct Tree(Vec<Node>);

impl Node {
    fn new(name: &OsStr, mode: u32, content: Content) -> Node {
        Node {
            name: name.to_string_lossy().into_owned(),
            content,
            links: 1,
            mode: (mode & 0o7777) as u16,
        }
    }

    pub fn len(&self) -> u64 {
        match &self.content {
            Content::Directory(_) => 0,
            Content::File { bytes, .. } => bytes.len() as u64,
        }
    }
}

impl Tree {
    pub fn new() -> Tree {
        let root = Content::Directory(BTreeMap::new());
        Tree(vec![Node::new(OsStr::new("/"), 0o755, root)])
    }

    pub fn node(&mut self, number: u64) -> Result<&mut Node, i32> {
        let index = number.checked_sub(ROOT).ok_or(ENOENT)?;
        self.0.get_mut(index as usize).ok_or(ENOENT)
    }

    pub fn directory(&mut self, number: u64) -> Result<&mut BTreeMap<OsString, u64>, i32> {
        match &mut self.node(number)?.content {
            Content::Directory(entries) => Ok(entries),
            Content::File { .. } => Err(ENOTDIR),
        }
    }

    /// Content of a file, and what it was before.
    fn file(&mut self, number: u64) -> Result<(&mut Vec<u8>, &mut Vec<u8>), i32> {
        match &mut self.node(number)?.content {
            Content::File { bytes, before } => Ok((bytes, before)),
            Content::Directory(_) => Err(EISDIR),
        }
    }

    pub fn find(&mut self, parent: u64, name: &OsStr) -> Result<u64, i32> {
        self.directory(parent)?.get(name).copied().ok_or(ENOENT)
    }

    pub fn make(
        &mut self,
        parent: u64,
        name: &OsStr,
        mode: u32,
        content: Content,
    ) -> Result<u64, i32> {
        let number = self.0.len() as u64 + ROOT;
        let entries = self.directory(parent)?;
        if entries.contains_key(name) {
            return Err(EEXIST);
        }
        entries.insert(name.to_owned(), number);
        self.0.push(Node::new(name, mode, content));
        Ok(number)
    }

    pub fn remove(&mut self, parent: u64, name: &OsStr) -> Result<(), i32> {
        let number = self.find(parent, name)?;
        if self
            .directory(number)
            .is_ok_and(|entries| !entries.is_empty())
        {
            return Err(ENOTEMPTY);
        }
        self.directory(parent)?.remove(name);
        self.node(number)?.links = 0;
        Ok(())
    }

    pub fn rename(
        &mut self,
        (parent, name): (u64, &OsStr),
        (new_parent, new_name): (u64, &OsStr),
        replaces: bool,
    ) -> Result<(), i32> {
        let number = self.find(parent, name)?;
        match self.find(new_parent, new_name) {
            Ok(_) if !replaces => return Err(EEXIST),
            Ok(_) => self.remove(new_parent, new_name)?,
            Err(_) => {}
        }
        self.directory(parent)?.remove(name);
        self.directory(new_parent)?
            .insert(new_name.to_owned(), number);
        self.node(number)?.name = new_name.to_string_lossy().into_owned();
        Ok(())
    }

    /// Gives the memory of a file back that nobody can reach any more.
    pub fn forget(&mut self, number: u64) {
        if let Ok(node) = self.node(number)
            && node.links == 0
        {
            node.content = Content::Directory(BTreeMap::new());
        }
    }

    pub fn set_len(&mut self, number: u64, len: u64) -> Result<(), i32> {
        let (bytes, before) = self.file(number)?;
        bytes.resize(len as usize, 0);
        before.resize(len as usize, 0);
        Ok(())
    }

    /// The bytes of a range that lie within the file, as they are or as they were.
    pub fn read(
        &mut self,
        number: u64,
        offset: u64,
        len: usize,
        is_stale: bool,
    ) -> Result<&[u8], i32> {
        let (bytes, before) = self.file(number)?;
        let from = bytes.len().min(offset as usize);
        let to = bytes.len().min(from + len);
        Ok(&if is_stale { before } else { bytes }[from..to])
    }

    /// Stores the first `stored` bytes of `data`; the file becomes as long as if all had been.
    pub fn write(
        &mut self,
        number: u64,
        offset: u64,
        data: &[u8],
        stored: usize,
    ) -> Result<(), i32> {
        let from = offset as usize;
        let to = from + data.len();
        if self.node(number)?.len() < to as u64 {
            self.set_len(number, to as u64)?;
        }
        let (bytes, before) = self.file(number)?;
        before[from..to].copy_from_slice(&bytes[from..to]);
        bytes[from..from + stored].copy_from_slice(&data[..stored]);
        Ok(())
    }
}
