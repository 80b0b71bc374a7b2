//! `docs/CLI.md`: its listings, one after the other in one directory, as they stand.

use std::path::Path;
use std::process::Command;

use crate::listings::listings;
use crate::support::*;

#[test]
fn every_listing_of_the_guide_runs() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/CLI.md");
    let guide = std::fs::read_to_string(path).unwrap();
    let listings: Vec<String> = listings(&guide)
        .into_iter()
        .filter(|listing| listing.language == "sh")
        .map(|listing| listing.text)
        .collect();
    assert_eq!(listings.len(), 9);
    let place = place();
    store(&place.path().join("run"));
    snapshots(&place.path().join("snap"));
    for drive in ["drive1", "drive2"] {
        std::fs::create_dir(place.path().join(drive)).unwrap();
    }
    let tool = Path::new(env!("CARGO_BIN_EXE_tensorswap"))
        .parent()
        .unwrap();
    let path = format!("{}:{}", tool.display(), std::env::var("PATH").unwrap());
    for listing in listings {
        let mut shell = Command::new("sh");
        shell
            .args(["-euc", listing.as_str()])
            .env("PATH", &path)
            .current_dir(place.path());
        let output = shell.output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && errors.is_empty(),
            "{listing}\n{errors}"
        );
    }
    let made = [
        "deepspeed_aio.json",
        "doctor.json",
        "doctor.txt",
        "drive1",
        "drive2",
        "run",
        "snap",
        "snap3",
        "store.json",
        "tensorswap-tune.html",
        "tensorswap.json",
    ];
    assert_eq!(names_in(place.path()), made);
}
