//! What a file system does wrong, when, and to which file. Decided by seed, file, operation and the
//! number of that operation, so that the order in which threads come does not matter.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;

use crate::support::Random;

/// What a file system is asked to do with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    Open,
    Read,
    Write,
    /// `fsync` and `fdatasync`, of a file or a directory.
    Sync,
    /// `fallocate`.
    Reserve,
    SetLength,
    /// The name under which the file was.
    Rename,
}

/// What it does instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Fails with this errno; of a write, any number of sectors may be stored.
    Error(i32),
    /// Moves less than asked, and says so.
    Short,
    /// Takes its time.
    Delay,
    /// A write that is reported as done, and of which nothing is stored.
    Lost,
    /// A write that is reported as done, and of which only the first sectors are stored.
    Torn,
    /// A read that finds what was there before the last write.
    Stale,
}

const OPERATIONS: [(&str, Operation); 7] = [
    ("open", Operation::Open),
    ("read", Operation::Read),
    ("write", Operation::Write),
    ("sync", Operation::Sync),
    ("reserve", Operation::Reserve),
    ("length", Operation::SetLength),
    ("rename", Operation::Rename),
];

const FAULTS: [(&str, Fault); 7] = [
    ("EIO", Fault::Error(libc::EIO)),
    ("ENOSPC", Fault::Error(libc::ENOSPC)),
    ("short", Fault::Short),
    ("delay", Fault::Delay),
    ("lost", Fault::Lost),
    ("torn", Fault::Torn),
    ("stale", Fault::Stale),
];

#[derive(Debug)]
struct Rule {
    /// Part of the file's name, `*` for every file.
    file: String,
    operation: Operation,
    /// Of a thousand operations; or the number of the one, counted from 0.
    when: Result<u64, u64>,
    /// Place in `FAULTS`.
    fault: usize,
}

#[derive(Debug, Default)]
struct State {
    is_on: bool,
    seed: u64,
    rules: Vec<Rule>,
    /// Operations so far, of each file name and kind.
    counts: HashMap<(String, Operation), u64>,
    struck: BTreeMap<usize, u64>,
    chances: u64,
}

/// What is done wrong. Nothing is, until it is switched on.
#[derive(Debug, Default)]
pub struct Plan(Mutex<State>);

impl Plan {
    /// Takes one order and answers it:
    ///
    /// * `FILE OPERATION N FAULT`: a rule that strikes N in a thousand operations on files with
    ///   FILE in their names (`*`: all); `#N` the operation of that number on each of them;
    /// * `seed N`; `on`; `off`;
    /// * `struck`: answered with each fault and how often it struck.
    pub fn obey(&self, order: &str) -> String {
        let mut state = self.0.lock().unwrap();
        let words: Vec<&str> = order.split_whitespace().collect();
        match words[..] {
            ["on"] => state.is_on = true,
            ["off"] => state.is_on = false,
            ["seed", seed] => state.seed = seed.parse().unwrap(),
            ["struck"] => {
                let told = state.struck.iter();
                let told = told.map(|(fault, count)| format!("{} {count}", FAULTS[*fault].0));
                return told.collect::<Vec<_>>().join(" ");
            }
            [file, operation, when, fault] => {
                let known = OPERATIONS.iter().find(|(name, _)| *name == operation);
                let fault = FAULTS.iter().position(|(name, _)| *name == fault);
                let (Some((_, operation)), Some(fault)) = (known, fault) else {
                    return format!("not understood: {order}");
                };
                let when = match when.strip_prefix('#') {
                    Some(number) => Err(number.parse().unwrap()),
                    None => Ok(when.parse().unwrap()),
                };
                state.rules.push(Rule {
                    file: file.trim_matches('*').to_owned(),
                    operation: *operation,
                    when,
                    fault,
                });
            }
            _ => return format!("not understood: {order}"),
        }
        "yes".to_owned()
    }

    /// What happens to the next operation of this kind on a file of this name.
    pub fn next(&self, file: &str, operation: Operation) -> Option<Fault> {
        let mut state = self.0.lock().unwrap();
        if !state.is_on {
            return None;
        }
        let count = state
            .counts
            .entry((file.to_owned(), operation))
            .or_default();
        let number = *count;
        *count += 1;
        let name = file
            .bytes()
            .fold(state.seed, |sum, byte| Random(sum ^ u64::from(byte)).next());
        let place = Random(name ^ operation as u64).next() ^ number;
        let strikes = |(index, rule): &(usize, &Rule)| {
            let chance = Random(place ^ (*index as u64) << 48).next() % 1000;
            let is_now = match rule.when {
                Ok(per_mille) => chance < per_mille,
                Err(at) => at == number,
            };
            is_now && rule.operation == operation && file.contains(&rule.file)
        };
        let fault = state.rules.iter().enumerate().find(strikes)?.1.fault;
        *state.struck.entry(fault).or_default() += 1;
        Some(FAULTS[fault].1)
    }

    /// A number below `bound`, by chance.
    pub fn below(&self, bound: usize) -> usize {
        let mut state = self.0.lock().unwrap();
        state.chances += 1;
        Random(state.seed ^ state.chances << 32).below(bound)
    }
}
