//! The commands for the tool in the README, on a smaller scale.

use crate::listings::listings;
use crate::support::*;

#[test]
fn the_commands_of_the_readme_work() {
    let readme = include_str!("../../../README.md");
    let listing = listings(readme)
        .into_iter()
        .find(|listing| listing.text.contains("\ntensorswap doctor "))
        .unwrap();
    let lines: Vec<&str> = listing
        .text
        .lines()
        .filter(|line| line.starts_with("tensorswap "))
        .collect();
    let commands: Vec<&str> = lines
        .iter()
        .filter_map(|line| line.split_whitespace().nth(1))
        .collect();
    assert_eq!(commands, ["doctor", "bench", "tune", "plan", "inspect"]);
    let place = place();
    store(place.path());
    for line in lines {
        let words = line.split('#').next().unwrap().split_whitespace().skip(1);
        let here = text_of(place.path());
        let mut arguments: Vec<String> = words
            .map(|word| {
                word.replace("/mnt/nvme/run1", here)
                    .replace("/mnt/nvme", here)
            })
            .collect();
        let smaller: &[&str] = match arguments[0].as_str() {
            "bench" => &[
                "--size",
                "4MiB",
                "--file-size",
                "1MiB",
                "--small",
                "20",
                "--rounds",
                "1",
            ],
            "tune" => &[
                "--seconds",
                "0.1",
                "--size",
                "2MiB",
                "--blocks",
                "1MiB",
                "--depths",
                "2",
            ],
            _ => &[],
        };
        arguments.extend(smaller.iter().map(|word| (*word).to_owned()));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let run = run_in(place.path(), &arguments);
        // A machine on which the doctor finds something is no failure of the doctor.
        let is_well = run.status == Some(0) || arguments[0] == "doctor" && run.status == Some(1);
        assert!(is_well && !run.out.is_empty(), "{line}: {run:?}");
    }
}
