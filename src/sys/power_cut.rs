//! What a disk can hold after the power failed, for tests.
//!
//! The model is that of a disk and a file system that promise nothing but what was synced: since
//! the last sync of a file each of its sectors holds what it held then or anything that was
//! written to it later, in any combination; its length is any that it had; of the names, those
//! given or taken in a directory since its last sync are as some moment in between left them,
//! whatever became of those in other directories. A name that went from one directory to another
//! did so in one step, and is sure to have when both were synced.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{CString, OsStr};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::FileIdentity;
use super::recording::{Event, Name, Notes, Recording};
use crate::base::units::{to_u64, to_usize};

/// What a disk writes whole or not at all.
const SECTOR_BYTES: u64 = 512;
type Sector = [u8; 512];
const ZEROS: Sector = [0; 512];
/// By chance, every so manieth change of names that may be lost is.
const LOSS_ODDS: usize = 4;

#[derive(Debug, Default)]
struct File {
    durable: HashMap<u64, Sector>,
    durable_len_bytes: u64,
    /// What was written to sectors since the last sync, oldest first.
    written: BTreeMap<u64, Vec<Sector>>,
    /// Lengths since the last sync, oldest first.
    lengths: Vec<u64>,
}

impl File {
    fn len_bytes(&self) -> u64 {
        self.lengths
            .last()
            .copied()
            .unwrap_or(self.durable_len_bytes)
    }

    fn sector(&self, index: u64) -> Sector {
        let written = self
            .written
            .get(&index)
            .and_then(|versions| versions.last());
        let durable = || self.durable.get(&index).copied();
        written.copied().or_else(durable).unwrap_or(ZEROS)
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut at = offset;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (index, within) = (at / SECTOR_BYTES, at % SECTOR_BYTES);
            let part_bytes = (SECTOR_BYTES - within).min(to_u64(rest.len()));
            // Less than a sector: both fit.
            let start = usize::try_from(within).unwrap_or(0);
            let (part, more) = rest.split_at(usize::try_from(part_bytes).unwrap_or(0));
            let mut sector = self.sector(index);
            sector[start..start + part.len()].copy_from_slice(part);
            self.written.entry(index).or_default().push(sector);
            at += part_bytes;
            rest = more;
        }
        if at > self.len_bytes() {
            self.lengths.push(at);
        }
    }

    fn set_len(&mut self, len_bytes: u64) {
        let first_gone = len_bytes.div_ceil(SECTOR_BYTES);
        let known = self.durable.keys().chain(self.written.keys());
        let gone: Vec<u64> = known
            .copied()
            .filter(|index| *index >= first_gone)
            .collect();
        for index in gone {
            self.written.entry(index).or_default().push(ZEROS);
        }
        let within = usize::try_from(len_bytes % SECTOR_BYTES).unwrap_or(0);
        if within != 0 && len_bytes < self.len_bytes() {
            let index = len_bytes / SECTOR_BYTES;
            let mut sector = self.sector(index);
            sector[within..].fill(0);
            self.written.entry(index).or_default().push(sector);
        }
        self.lengths.push(len_bytes);
    }

    fn sync(&mut self) {
        self.durable_len_bytes = self.len_bytes();
        self.lengths.clear();
        for (index, versions) in std::mem::take(&mut self.written) {
            if let Some(last) = versions.last() {
                self.durable.insert(index, *last);
            }
        }
    }

    /// Writes what may be left of the file.
    fn leave(&self, path: &Path, chance: &mut Chance) -> io::Result<()> {
        let file = fs::File::create(path)?;
        let len_bytes = match chance.below(self.lengths.len() + 1) {
            0 => self.durable_len_bytes,
            nth => self.lengths[nth - 1],
        };
        let mut sectors: BTreeMap<u64, Sector> = self.durable.clone().into_iter().collect();
        for (index, versions) in &self.written {
            match chance.below(versions.len() + 1) {
                0 => {}
                nth => drop(sectors.insert(*index, versions[nth - 1])),
            }
        }
        let mut sectors = sectors.into_iter().peekable();
        while let Some((first, sector)) = sectors.next() {
            let mut run = sector.to_vec();
            let mut next = first + 1;
            while let Some((_, sector)) = sectors.next_if(|(index, _)| *index == next) {
                run.extend_from_slice(&sector);
                next += 1;
            }
            let offset = first * SECTOR_BYTES;
            let kept = len_bytes.saturating_sub(offset).min(to_u64(run.len()));
            file.write_all_at(&run[..usize::try_from(kept).unwrap_or(0)], offset)?;
        }
        file.set_len(len_bytes)
    }
}

/// Chooses what survives: nothing, everything, or each thing by chance.
#[derive(Debug)]
struct Chance(u64);

impl Chance {
    /// A number below `bound`; the first is "as at the last sync", the last "as at the end".
    fn below(&mut self, bound: usize) -> usize {
        match self.0 {
            0 => 0,
            1 => bound - 1,
            _ => {
                // Marsaglia 2003, xorshift64.
                self.0 ^= self.0 << 13;
                self.0 ^= self.0 >> 7;
                self.0 ^= self.0 << 17;
                to_usize((self.0 >> 16) % to_u64(bound)).unwrap_or(0)
            }
        }
    }
}

/// The names in each directory.
#[derive(Debug, Default)]
struct Tree(HashMap<u32, BTreeMap<CString, u32>>);

impl Tree {
    fn set(&mut self, name: &Name, node: Option<u32>) {
        let names = self.0.entry(name.directory).or_default();
        match node {
            Some(node) => names.insert(name.name.clone(), node),
            None => names.remove(&name.name),
        };
    }

    fn get(&self, name: &Name) -> Option<u32> {
        self.0.get(&name.directory)?.get(&name.name).copied()
    }

    fn change(&mut self, event: &Event) {
        match event {
            Event::Create { node, name, .. } => self.set(name, Some(*node)),
            Event::Remove { name } => self.set(name, None),
            Event::Rename { from, to } => {
                if let Some(node) = self.get(from) {
                    self.set(from, None);
                    self.set(to, Some(node));
                }
            }
            Event::Exchange { one, other } => {
                if let (Some(first), Some(second)) = (self.get(one), self.get(other)) {
                    self.set(one, Some(second));
                    self.set(other, Some(first));
                }
            }
            Event::Write { .. } | Event::SetLength { .. } | Event::Sync { .. } => {}
        }
    }
}

/// A change of names, and the directories that were not synced since.
#[derive(Debug)]
struct NameChange {
    event: Event,
    unsynced: Vec<u32>,
}

/// All that was done to a disk.
#[derive(Debug, Default)]
struct Disk {
    files: HashMap<u32, File>,
    directories: HashSet<u32>,
    /// All of them, oldest first.
    names: Vec<NameChange>,
}

impl Disk {
    fn change(&mut self, event: &Event) {
        let unsynced = match event {
            Event::Write {
                file,
                offset_bytes,
                bytes,
            } => return self.file(*file).write(*offset_bytes, bytes),
            Event::SetLength { file, len_bytes } => return self.file(*file).set_len(*len_bytes),
            Event::Sync { node } => {
                for change in &mut self.names {
                    change.unsynced.retain(|directory| directory != node);
                }
                return self.file(*node).sync();
            }
            Event::Create {
                node,
                is_directory,
                name,
            } => {
                if *is_directory {
                    self.directories.insert(*node);
                }
                vec![name.directory]
            }
            Event::Remove { name } => vec![name.directory],
            Event::Rename { from, to }
            | Event::Exchange {
                one: from,
                other: to,
            } => vec![from.directory, to.directory],
        };
        self.names.push(NameChange {
            event: event.clone(),
            unsynced,
        });
    }

    fn file(&mut self, node: u32) -> &mut File {
        self.files.entry(node).or_default()
    }

    fn after<'a>(events: impl IntoIterator<Item = &'a Event>) -> Disk {
        let mut disk = Disk::default();
        events.into_iter().for_each(|event| disk.change(event));
        disk
    }

    /// Writes what may be left of it; says which number is where.
    fn leave(&self, into: &Path, mut chance: Chance) -> io::Result<Vec<(u32, PathBuf)>> {
        let mut tree = Tree::default();
        let mut lost = HashSet::new();
        for NameChange { event, unsynced } in &self.names {
            let is_lost = |lost: &HashSet<u32>| unsynced.iter().any(|node| lost.contains(node));
            // Nothing that follows in a directory is there without what it follows.
            if !unsynced.is_empty() && (is_lost(&lost) || chance.below(LOSS_ODDS) == 0) {
                lost.extend(unsynced);
            } else {
                tree.change(event);
            }
        }
        let mut left = vec![(0, into.to_owned())];
        let mut done = 0;
        while let Some((directory, into)) = left.get(done).cloned() {
            for (name, node) in tree.0.get(&directory).into_iter().flatten() {
                let path = into.join(OsStr::from_bytes(name.to_bytes()));
                match self.files.get(node) {
                    _ if self.directories.contains(node) => fs::create_dir(&path)?,
                    Some(file) => file.leave(&path, &mut chance)?,
                    None => fs::write(&path, "")?,
                }
                left.push((*node, path));
            }
            done += 1;
        }
        Ok(left)
    }
}

impl Recording {
    /// Builds in the empty directory `into` what the directory of the recording could be like if the
    /// power had failed after the first `events_len` events. With `seed` 0 only what was synced
    /// survives, with 1 everything does, and every other seed makes a choice of its own for each
    /// sector, length and directory.
    ///
    /// # Errors
    /// Those of writing the files.
    pub fn power_cut(&self, events_len: usize, seed: u64, into: &Path) -> io::Result<()> {
        let disk = Disk::after(self.notes().events.iter().take(events_len));
        disk.leave(into, Chance(seed)).map(drop)
    }

    /// Builds in the empty directory `into` what whoever comes next finds where the process was
    /// killed after the first `events_len` events, and begins a recording there that has these
    /// events behind it, synced or not.
    ///
    /// # Errors
    /// Those of writing the files.
    pub fn kill(&self, events_len: usize, into: &Path) -> io::Result<Recording> {
        let mut events = self.events();
        events.truncate(events_len);
        let mut notes = Notes::after(events);
        for (node, path) in Disk::after(&notes.events).leave(into, Chance(1))? {
            let file = fs::symlink_metadata(path)?;
            let identity = FileIdentity {
                device: file.dev(),
                inode: file.ino(),
            };
            notes.nodes.insert(identity, node);
        }
        Ok(Recording::begin(notes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys;
    use std::os::fd::AsFd;
    use tempfile::TempDir;

    /// An empty directory, open, and its recording.
    fn recorded() -> (TempDir, std::os::fd::OwnedFd, Recording) {
        let root = tempfile::tempdir().unwrap();
        let path = CString::new(root.path().as_os_str().as_bytes()).unwrap();
        let directory = sys::open_directory(&path).unwrap();
        let recording = Recording::of(root.path()).unwrap();
        (root, directory, recording)
    }

    fn left(recording: &Recording, seed: u64) -> TempDir {
        let place = tempfile::tempdir().unwrap();
        let events_len = recording.events_len();
        recording.power_cut(events_len, seed, place.path()).unwrap();
        place
    }

    #[test]
    fn what_was_synced_survives_and_the_rest_may() {
        let (_root, directory, recording) = recorded();
        let file = sys::create_at(directory.as_fd(), c"a").unwrap();
        sys::sync(directory.as_fd()).unwrap();
        sys::write_at(file.as_fd(), &[1; 1024], 0).unwrap();
        sys::sync_data(file.as_fd()).unwrap();
        sys::write_at(file.as_fd(), &[2; 1536], 0).unwrap();
        let left = |seed| fs::read(left(&recording, seed).path().join("a")).unwrap();
        assert_eq!(left(0), vec![1; 1024]);
        assert_eq!(left(1), vec![2; 1536]);
        let mut seen_mixed = false;
        for seed in 2..40 {
            let left = left(seed);
            assert!(left.len() == 1024 || left.len() == 1536);
            assert!(left[..1024].iter().all(|byte| [1, 2].contains(byte)));
            seen_mixed |= left[0] != left[512];
        }
        assert!(seen_mixed);
    }

    #[test]
    fn a_name_that_was_not_synced_may_be_lost_and_a_cut_file_may_be_long() {
        let (_root, directory, recording) = recorded();
        let file = sys::create_at(directory.as_fd(), c"a").unwrap();
        sys::write_at(file.as_fd(), &[7; 1000], 0).unwrap();
        sys::sync_data(file.as_fd()).unwrap();
        sys::sync(directory.as_fd()).unwrap();
        sys::set_len(file.as_fd(), 600).unwrap();
        sys::rename_at(directory.as_fd(), c"a", c"b").unwrap();
        let place = left(&recording, 0);
        assert_eq!(fs::read(place.path().join("a")).unwrap(), vec![7; 1000]);
        let place = left(&recording, 1);
        assert_eq!(fs::read(place.path().join("b")).unwrap(), vec![7; 600]);
        assert!(!place.path().join("a").exists());
    }

    #[test]
    fn directories_move_in_one_step_that_is_sure_when_both_sides_were_synced() {
        let (root, directory, recording) = recorded();
        let top = directory.as_fd();
        fs::write(root.path().join("unseen"), "before").unwrap();
        for name in [c"from", c"to"] {
            sys::make_directory_at(top, name).unwrap();
        }
        let [from, to] = [c"from", c"to"].map(|name| sys::open_directory_at(top, name).unwrap());
        let (from, to) = (from.as_fd(), to.as_fd());
        let made = [
            (from, c"one", c"mine"),
            (to, c"one", c"other"),
            (from, c"two", c"mine"),
        ];
        for (place, name, file) in made {
            sys::make_directory_at(place, name).unwrap();
            let inner = sys::open_directory_at(place, name).unwrap();
            sys::open_at(inner.as_fd(), file, true).unwrap();
            sys::sync(inner.as_fd()).unwrap();
        }
        for place in [from, to, top] {
            sys::sync(place).unwrap();
        }
        let is_there = |seed, path: &str| left(&recording, seed).path().join(path).exists();
        assert!(is_there(0, "from/one/mine") && is_there(0, "to/one/other"));
        sys::exchange_at(from, c"one", to, c"one").unwrap();
        sys::move_at(from, c"two", to, c"two").unwrap();
        sys::sync(to).unwrap();
        for seed in 0..20 {
            let left = left(&recording, seed);
            let there = |path: &str| left.path().join(path).exists();
            assert_ne!(there("from/one/mine"), there("to/one/mine"));
            assert_eq!(there("from/one/mine"), there("to/one/other"));
            assert_ne!(there("from/two/mine"), there("to/two/mine"));
        }
        assert!(is_there(0, "from/one/mine") && is_there(1, "to/one/mine"));
        sys::sync(from).unwrap();
        assert!(is_there(0, "to/one/mine") && is_there(0, "from/one/other"));
        assert!(is_there(0, "to/two/mine") && !is_there(0, "from/two"));
        assert!(!is_there(1, "unseen"));
        // What a recording finds is on storage.
        let again = Recording::of(root.path()).unwrap();
        let place = left(&again, 0);
        assert_eq!(fs::read(place.path().join("unseen")).unwrap(), b"before");
        assert!(place.path().join("to/two/mine").exists());
        sys::unlink_at(top, c"unseen").unwrap();
        again.stop();
        sys::make_directory_at(top, c"late").unwrap();
        let place = left(&again, 1);
        assert!(!place.path().join("unseen").exists() && !place.path().join("late").exists());
    }
}
