//! A process of this program once more, that says what it does, and is killed.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::Random;

/// Tell a process that it is a child: where it works, and how.
const PLACE: &str = "TSW_TEST_KILLS_PLACE";
const HOW: &str = "TSW_TEST_KILLS_HOW";
const SEED: &str = "TSW_TEST_KILLS_SEED";
/// What a line begins with that says what is done from here on.
const DOING: &str = "doing";

/// What a child is told.
pub(crate) struct Task {
    pub(crate) place: PathBuf,
    pub(crate) how: String,
    pub(crate) random: Random,
}

impl Task {
    /// That of this process, if it is a child.
    pub(crate) fn told() -> Option<Task> {
        let task = Task {
            place: std::env::var_os(PLACE)?.into(),
            how: std::env::var(HOW).ok()?,
            random: Random(std::env::var(SEED).ok()?.parse().ok()?),
        };
        // The line before is the test harness's own.
        println!();
        Some(task)
    }
}

/// Says, in a child, what it does from here on.
pub(crate) fn doing(what: &str) {
    println!("{DOING} {what}");
}

/// Lets a child do `test` until it has said `awaited` lines for which `counts`, then as long as `wait`
/// takes, and kills it; all that it said.
pub(crate) fn run_and_kill(
    test: &str,
    (place, how): (&Path, &str),
    random: &mut Random,
    (counts, awaited): (&dyn Fn(&str) -> bool, usize),
    wait: &mut dyn FnMut(),
) -> Vec<String> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(PLACE, place)
        .env(HOW, how)
        .env(SEED, random.next().to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let mut lines = output.lines().map(Result::unwrap);
    let mut said = Vec::new();
    while said.iter().filter(|line: &&String| counts(line)).count() < awaited {
        said.push(lines.next().expect("the child met an error"));
    }
    wait();
    let ended = child.try_wait().unwrap();
    assert_eq!(ended, None, "the child met an error");
    child.kill().unwrap();
    child.wait().unwrap();
    said.extend(lines);
    said
}

/// Waits for any time up to a bound.
pub(crate) fn wait_below(max: Duration, random: &mut Random) {
    let delay_us = random.below(max.as_micros() as usize);
    std::thread::sleep(Duration::from_micros(delay_us as u64));
}

/// How many kills fell into what. What is done beside the rest is counted by itself.
#[derive(Default)]
pub(crate) struct Kills {
    total: u64,
    doing: BTreeMap<String, u64>,
}

impl Kills {
    /// Counts one, of a child that said this, and says what it was doing last.
    pub(crate) fn note(&mut self, said: &[String]) -> String {
        let mut doings = said.iter().filter_map(|line| line.split_once(' '));
        let last = doings.rfind(|(word, _)| *word == DOING);
        let last = last.map_or("starting", |(_, what)| what).to_owned();
        self.total += 1;
        self.note_beside(&last);
        last
    }

    pub(crate) fn note_beside(&mut self, what: &str) {
        *self.doing.entry(what.to_owned()).or_default() += 1;
    }

    /// Many kills leave nothing out of these.
    pub(crate) fn assert_all(&self, whats: &[&str]) {
        let missing: Vec<_> = whats
            .iter()
            .filter(|what| !self.doing.contains_key(**what))
            .collect();
        assert!(
            missing.is_empty() || self.total < 200,
            "{missing:?}: {self}"
        );
    }
}

impl fmt::Display for Kills {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} kills", self.total)?;
        let mut separator = ':';
        for (what, count) in &self.doing {
            write!(formatter, "{separator} {count} {what}")?;
            separator = ',';
        }
        Ok(())
    }
}
