//! Two devices of which one is twice as fast.

use std::io::Result;

use crate::common::figures::GIB;
use crate::model::{shape, state_bytes, steps, synced, text, train_at};
use crate::mount::{Mount, is_root};
use crate::options::Options;
use crate::table::{Row, Turn, print};
use crate::throttle::Throttle;

/// Steps on each device alone, and on both with given, measured and equal weights.
pub(crate) fn run(options: &Options) -> Result<()> {
    if !is_root("devices") {
        return Ok(());
    }
    let shape = shape(options, 50);
    // Four stores of two slots, one on each device and three on both, and the file systems' own.
    let room_bytes = u64::try_from(state_bytes(&shape) * 2 * 4).unwrap_or(u64::MAX);
    let mount = || Mount::new("ext4", room_bytes + (256 << 20), &options.directory());
    let (slow, fast) = (mount()?, mount()?);
    let throttle = Throttle::new()?;
    for (mount, times) in [(&slow, 1), (&fast, 2)] {
        throttle.limit(&mount.number()?, times * (options.slow.get() << 20))?;
    }
    let places = |name: &str| -> Result<[String; 2]> {
        Ok([text(&slow.point.join(name))?, text(&fast.point.join(name))?])
    };
    let [slow_alone, fast_alone] = places("alone")?;
    let on_both = |name: &str, weights: [&str; 2]| -> Result<String> {
        let [slow, fast] = places(name)?;
        Ok(format!("{slow}{},{fast}{}", weights[0], weights[1]))
    };
    let contestants = [
        ("the slow one", slow_alone),
        ("the fast one", fast_alone),
        ("both, weights 1:2 given", on_both("given", ["=1", "=2"])?),
        ("both, weights measured", on_both("measured", ["", ""])?),
        (
            "both, weights 1:1, as RAID 0",
            on_both("equal", ["=1", "=1"])?,
        ),
    ];
    let mut rows = contestants.each_ref().map(|(name, _)| Row::new(name));
    let mut stores = Vec::new();
    for (_, paths) in &contestants {
        stores.push(train_at(options, &shape, paths)?);
    }
    let case = synced()?;
    for _ in 0..options.common.rounds(5) {
        let mut turns = Vec::new();
        for store in &mut stores {
            turns.push(steps(store, &case, options.steps.get())?);
        }
        let speed = |turn: &Turn| turn.bytes / turn.seconds;
        let sum: f64 = turns.iter().take(2).map(speed).sum();
        for (row, turn) in rows.iter_mut().zip(&turns) {
            row.push(*turn, speed(turn) / sum);
        }
    }
    stores.iter().try_for_each(|training| training.verify())?;
    drop(stores);
    let title = format!(
        "Two devices of {} and {} MiB/s each way: steps of {}, {:.2} GiB of state",
        options.slow,
        2 * options.slow.get(),
        shape.name,
        state_bytes(&shape) as f64 / GIB
    );
    print(options, &title, "x sum of both", &rows);
    Ok(())
}
