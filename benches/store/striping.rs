//! What it costs to deal a store to two directories where that gains nothing: on one drive.

use std::io::Result;

use crate::common::figures::GIB;
use crate::model::{scratch, shape, state_bytes, steps, synced, text, train_at};
use crate::options::Options;
use crate::table::{Row, print};

/// Steps in one directory and in two, in turns.
pub(crate) fn run(options: &Options) -> Result<()> {
    let shape = shape(options, 100);
    let directory = scratch(&options.directory())?;
    let [one, first, second] = ["one", "first", "second"].map(|name| directory.path().join(name));
    let two = format!("{}=1,{}=1", text(&first)?, text(&second)?);
    let mut stores = [
        train_at(options, &shape, &text(&one)?)?,
        train_at(options, &shape, &two)?,
    ];
    let case = synced()?;
    let mut rows = [Row::new("one directory"), Row::new("two directories")];
    for round in 0..options.common.rounds(7) {
        let mut turns = [None; 2];
        for place in [round % 2, 1 - round % 2] {
            turns[place] = Some(steps(&mut stores[place], &case, options.steps.get())?);
        }
        let [Some(one), Some(two)] = turns else {
            continue;
        };
        rows[0].push(one, 1.0);
        rows[1].push(two, two.seconds / one.seconds);
    }
    stores.iter().try_for_each(|training| training.verify())?;
    let title = format!(
        "Striping over directories of one drive: steps of {}, {:.2} GiB of state",
        shape.name,
        state_bytes(&shape) as f64 / GIB
    );
    print(options, &title, "x one directory", &rows);
    Ok(())
}
