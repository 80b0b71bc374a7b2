//! A file system in memory, mounted through FUSE, that does wrong what its plan says: the kernel's
//! own path for direct and buffered transfers, reservations, syncs, renames and locks, over storage
//! that fails, dawdles and lies.
//!
//! Served by a process of its own, this program once more: a process that serves itself cannot end
//! while one of its threads waits for an answer. Needs `/dev/fuse`, and root or `fusermount3`; no
//! libfuse.
#![allow(
    dead_code,
    unreachable_pub,
    unsafe_code,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::print_stdout,
    reason = "a test"
)]

mod plan;
mod served;
mod tree;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// Tells the process that serves where to mount.
const POINT: &str = "TSW_TEST_FUSE_POINT";
/// What its answers begin with; other lines are those of the test harness.
const ANSWER: &str = "answer:";

/// Faults of which nobody is told.
const LIES: [&str; 3] = ["lost", "torn", "stale"];

/// A mounted file system of its own, gone with this.
pub struct Mount {
    server: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    point: tempfile::TempDir,
    plan: String,
}

impl Mount {
    /// Mounts one with a plan (`plan::Plan::obey` says how it is written) that is off. `None`, and
    /// said so, where that is not possible.
    pub fn new(seed: u64, plan: &str) -> Option<Mount> {
        let point = crate::support::directory();
        let mut server = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "fuse::serve", "--ignored", "--nocapture"])
            .env(POINT, point.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut mount = Mount {
            orders: server.stdin.take(),
            answers: BufReader::new(server.stdout.take().unwrap()),
            server,
            point,
            plan: plan.to_owned(),
        };
        match mount.answer().as_str() {
            "mounted" => {}
            reason => {
                crate::support::skip("fuse", &format!("mounting: {reason}"));
                return None;
            }
        }
        for order in plan.split(',').chain([format!("seed {seed}").as_str()]) {
            assert_eq!(mount.order(order.trim()), "yes", "{order}");
        }
        Some(mount)
    }

    fn answer(&mut self) -> String {
        loop {
            let mut line = String::new();
            let len = self.answers.read_line(&mut line).unwrap();
            assert!(len > 0, "nobody serves the file system");
            // The harness begins its own lines without ending them.
            if let Some((_, answer)) = line.trim_end().split_once(ANSWER) {
                return answer.trim().to_owned();
            }
        }
    }

    fn order(&mut self, order: &str) -> String {
        writeln!(self.orders.as_mut().unwrap(), "{order}").unwrap();
        self.answer()
    }

    pub fn path(&self) -> &Path {
        self.point.path()
    }

    pub fn switch(&mut self, on: bool) {
        assert_eq!(self.order(if on { "on" } else { "off" }), "yes");
    }

    /// Whether it ever does wrong without a word.
    pub fn lies(&self) -> bool {
        LIES.iter().any(|lie| self.plan.contains(lie))
    }

    /// Whether transfers move less than asked, and say so.
    pub fn is_short(&self) -> bool {
        self.plan.contains("short")
    }

    /// How often each fault struck.
    pub fn struck(&mut self) -> Vec<(String, u64)> {
        let told = self.order("struck");
        let words: Vec<&str> = told.split_whitespace().collect();
        let pairs = words.chunks_exact(2);
        pairs
            .map(|pair| (pair[0].to_owned(), pair[1].parse().unwrap()))
            .collect()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // The end of its input is its end.
        self.orders = None;
        let _ = self.server.wait();
    }
}

#[test]
#[ignore = "run by tests that mount"]
fn serve() {
    if let Some(point) = std::env::var_os(POINT) {
        served::serve(Path::new(&point));
    }
}
