//! One contestant's turn: prepare, time, check.

use std::io::{Error, Result};
use std::time::Instant;

use crate::common::area::Area;
use crate::common::figures::cpu_seconds;
use crate::contestants::{Contestant, Direction, Job};
use crate::data::Files;

/// What a turn took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    pub(crate) seconds: f64,
    pub(crate) cpu_seconds: f64,
}

/// What a scenario does to its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    OutRewrite,
    OutNew,
    In,
}

impl Kind {
    pub(crate) const ALL: [Kind; 3] = [Kind::OutRewrite, Kind::OutNew, Kind::In];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::OutRewrite => "out, existing files",
            Kind::OutNew => "out, new files",
            Kind::In => "in",
        }
    }
}

/// Lets a contestant do its work once. `content` is what the files hold before a swap-in.
pub(crate) fn turn(
    contestant: &mut dyn Contestant,
    kind: Kind,
    files: &mut Files,
    content: Area,
    stamp: u64,
    verify: bool,
) -> Result<Sample> {
    if kind == Kind::OutNew {
        files.renew()?;
    }
    match kind {
        Kind::In => {
            if let Some(mut target) = contestant.target() {
                target.as_mut_slice().fill(0);
            }
        }
        Kind::OutRewrite | Kind::OutNew => {
            if let Some(mut source) = contestant.source() {
                source.stamp(stamp);
            }
        }
    }
    let job = Job {
        direction: if kind == Kind::In {
            Direction::In
        } else {
            Direction::Out
        },
        new: kind == Kind::OutNew,
        files,
    };
    contestant.prepare(&job)?;
    files.sync()?;
    let cpu_before = cpu_seconds();
    let start = Instant::now();
    let elsewhere = contestant.run(&job)?;
    let seconds = start.elapsed().as_secs_f64();
    let cpu_seconds = cpu_seconds() - cpu_before;
    contestant.finish(&job);
    if contestant.uses_page_cache() {
        files.sync()?;
        files.drop_cached()?;
    }
    if verify {
        check(contestant, kind, files, content)?;
    }
    let (seconds, cpu_seconds) = elsewhere.unwrap_or((seconds, cpu_seconds));
    Ok(Sample {
        seconds,
        cpu_seconds,
    })
}

fn check(
    contestant: &mut dyn Contestant,
    kind: Kind,
    files: &mut Files,
    content: Area,
) -> Result<()> {
    match (kind, contestant.source(), contestant.target()) {
        (Kind::In, _, Some(target)) => {
            let len = files.total_bytes();
            if target.part(0, len).as_slice() == content.part(0, len).as_slice() {
                Ok(())
            } else {
                let name = contestant.name();
                Err(Error::other(format!(
                    "{name}: memory is not as the files are"
                )))
            }
        }
        (Kind::OutRewrite | Kind::OutNew, Some(source), _) => files.verify(source),
        _ => Ok(()),
    }
}
