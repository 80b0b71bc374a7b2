//! What a disk can hold after the power failed, for tests.
//!
//! The model is that of a disk and a file system that promise nothing but what was synced: since
//! the last sync of a file each of its sectors holds what it held then or anything that was
//! written to it later, in any combination; its length is any that it had; of the names, those
//! given or taken since the last sync of their directory are as some moment in between left them.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::witness::{Event, Witness};
use crate::base::units::{to_u64, to_usize};

/// What a disk writes whole or not at all.
const SECTOR_BYTES: u64 = 512;
type Sector = [u8; 512];
const ZEROS: Sector = [0; 512];

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
        for (index, sector) in sectors {
            let offset = index * SECTOR_BYTES;
            let kept = len_bytes.saturating_sub(offset).min(SECTOR_BYTES);
            file.write_all_at(&sector[..usize::try_from(kept).unwrap_or(0)], offset)?;
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

/// Names, by path.
type Names = BTreeMap<PathBuf, u32>;

fn rename(names: &mut Names, event: &Event) {
    match event {
        Event::Create { file, path } => drop(names.insert(path.clone(), *file)),
        Event::Rename { from, to } => {
            if let Some(file) = names.remove(from) {
                names.insert(to.clone(), file);
            }
        }
        Event::Remove { path } => drop(names.remove(path)),
        _ => {}
    }
}

impl Witness {
    /// Builds in the directory `into` what the files below `root` could be like if the power had
    /// failed after the first `events_len` events. With `seed` 0 only what was synced survives,
    /// with 1 everything does, and every other seed makes a choice of its own for each sector,
    /// length and name.
    ///
    /// Files that were there before the witness are not known to it.
    ///
    /// # Errors
    /// Those of writing the files.
    pub fn power_cut(
        &self,
        events_len: usize,
        seed: u64,
        root: &Path,
        into: &Path,
    ) -> io::Result<()> {
        let mut files: HashMap<u32, File> = HashMap::new();
        let mut names = Names::new();
        let mut pending: Vec<Event> = Vec::new();
        for event in self.events().into_iter().take(events_len) {
            match event {
                Event::Write {
                    file,
                    offset_bytes,
                    bytes,
                } => files.entry(file).or_default().write(offset_bytes, &bytes),
                Event::SetLength { file, len_bytes } => {
                    files.entry(file).or_default().set_len(len_bytes);
                }
                Event::Sync { file } => files.entry(file).or_default().sync(),
                Event::SyncDirectory { path } => {
                    let there = |event: &Event| match event {
                        Event::Create { path: name, .. }
                        | Event::Remove { path: name }
                        | Event::Rename { to: name, .. } => name.parent() == Some(&path),
                        _ => false,
                    };
                    let (synced, others) = pending.into_iter().partition(there);
                    pending = others;
                    let synced: Vec<Event> = synced;
                    synced.iter().for_each(|event| rename(&mut names, event));
                }
                renamed => pending.push(renamed),
            }
        }
        let mut chance = Chance(seed);
        let survivors = chance.below(pending.len() + 1);
        for event in &pending[..survivors] {
            rename(&mut names, event);
        }
        for (path, number) in names {
            let Ok(below) = path.strip_prefix(root) else {
                continue;
            };
            let path = into.join(below);
            fs::create_dir_all(path.parent().unwrap_or(into))?;
            files.entry(number).or_default().leave(&path, &mut chance)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(witness: &Witness, events: Vec<Event>) {
        for event in events {
            witness.note(event);
        }
    }

    fn write(offset_bytes: u64, bytes: Vec<u8>) -> Event {
        Event::Write {
            file: 0,
            offset_bytes,
            bytes,
        }
    }

    #[test]
    fn what_was_synced_survives_and_the_rest_may() {
        let witness = Witness::new();
        let path = PathBuf::from("/r/a");
        let directory = PathBuf::from("/r");
        note(
            &witness,
            vec![
                Event::Create { file: 0, path },
                Event::SyncDirectory { path: directory },
                write(0, vec![1; 1024]),
                Event::Sync { file: 0 },
                write(0, vec![2; 1536]),
            ],
        );
        let place = tempfile::tempdir().unwrap();
        let left = |seed| {
            witness
                .power_cut(5, seed, Path::new("/r"), place.path())
                .unwrap();
            fs::read(place.path().join("a")).unwrap()
        };
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
        let witness = Witness::new();
        let (a, b) = (PathBuf::from("/r/a"), PathBuf::from("/r/b"));
        let directory = PathBuf::from("/r");
        note(
            &witness,
            vec![
                Event::Create {
                    file: 0,
                    path: a.clone(),
                },
                write(0, vec![7; 1000]),
                Event::Sync { file: 0 },
                Event::SyncDirectory { path: directory },
                Event::SetLength {
                    file: 0,
                    len_bytes: 600,
                },
                Event::Rename { from: a, to: b },
            ],
        );
        let place = tempfile::tempdir().unwrap();
        witness
            .power_cut(6, 0, Path::new("/r"), place.path())
            .unwrap();
        assert_eq!(fs::read(place.path().join("a")).unwrap(), vec![7; 1000]);
        let place = tempfile::tempdir().unwrap();
        witness
            .power_cut(6, 1, Path::new("/r"), place.path())
            .unwrap();
        assert_eq!(fs::read(place.path().join("b")).unwrap(), vec![7; 600]);
        assert!(!place.path().join("a").exists());
    }
}
