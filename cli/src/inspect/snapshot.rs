//! What is told of a snapshot.

use std::path::Path;

use serde::Serialize;
use tensorswap::snapshot::Snapshot;

use super::is_damage;
use super::report::{StateReport, note, parameters_table, states_text, verified_text};
use super::verify::{Damage, Verified};
use crate::failure::Failure;
use crate::output::{BOLD, shown_path, styled};
use crate::progress::Progress;
use crate::sizes::{grouped, shown, to_u64};

/// All that there is to tell.
#[derive(Debug, Serialize)]
pub(super) struct SnapshotReport {
    path: String,
    is_snapshot: bool,
    step: u64,
    user_data_bytes: usize,
    data_bytes: u64,
    elements_count: u64,
    states: Vec<StateReport>,
    parameters: Vec<SavedReport>,
    pub(super) verified: Option<Verified>,
}

#[derive(Debug, Serialize)]
struct SavedReport {
    id: u64,
    name: Option<String>,
    elements_count: u64,
    /// Bytes of its states, without those that are zero.
    images_bytes: u64,
    zero_states: Vec<String>,
    has_checksums: bool,
}

impl SnapshotReport {
    pub(super) fn new(path: &Path, is_verified: bool) -> Result<SnapshotReport, Failure> {
        let snapshot = Snapshot::open(path)?;
        let states: Vec<StateReport> = snapshot.states().map(StateReport::of).collect();
        let parameters = snapshot.parameters().map(|parameter| {
            let named = states.iter().enumerate();
            let zero = named.filter(|(index, _)| parameter.zero_states & (1 << index) != 0);
            SavedReport {
                id: parameter.id,
                name: parameter.name.map(str::to_owned),
                elements_count: parameter.numel,
                images_bytes: parameter.images_bytes,
                zero_states: zero.map(|(_, state)| state.name.clone()).collect(),
                has_checksums: parameter.is_checked,
            }
        });
        let parameters: Vec<SavedReport> = parameters.collect();
        let verified = match is_verified {
            true => Some(verify(&snapshot)?),
            false => None,
        };
        Ok(SnapshotReport {
            path: shown_path(path),
            is_snapshot: true,
            step: snapshot.step(),
            user_data_bytes: snapshot.user_data().len(),
            data_bytes: snapshot.data_bytes(),
            elements_count: parameters
                .iter()
                .map(|parameter| parameter.elements_count)
                .sum(),
            states,
            parameters,
            verified,
        })
    }
}

fn verify(snapshot: &Snapshot) -> Result<Verified, Failure> {
    let total = snapshot
        .parameters()
        .map(|parameter| parameter.images_bytes);
    let progress = Progress::of_bytes(total.sum());
    let mut verified = Verified::default();
    for (index, parameter) in snapshot.parameters().enumerate() {
        let mut bytes = 0;
        let done = snapshot.verify_parameter(index, &mut |more| {
            bytes += more;
            progress.advance(more);
        });
        match done {
            Ok(()) => verified.compared_bytes += bytes,
            Err(error) if is_damage(&error) => verified.damages.push(Damage {
                id: parameter.id,
                message: error.to_string(),
            }),
            Err(error) => return Err(error.into()),
        }
        verified.unchecked_count += u64::from(!parameter.is_checked);
    }
    Ok(verified)
}

/// The report for people.
pub(super) fn text_of(report: &SnapshotReport, limit: usize) -> String {
    let mut text = format!("{}\n\n", styled(BOLD, &report.path));
    let mut line = |name: &str, value: &str| text += &format!("  {name:<12} {value}\n");
    line("snapshot", &format!("of step {}", report.step));
    line("states", &states_text(&report.states));
    let count = grouped(to_u64(report.parameters.len()));
    let elements = grouped(report.elements_count);
    line("parameters", &format!("{count} with {elements} elements"));
    line("data", &shown(report.data_bytes));
    line("user data", &shown(to_u64(report.user_data_bytes)));
    if let Some(verified) = &report.verified {
        line("verified", &verified_text(verified));
    }
    let header = ["name", "id", "elements", "bytes", ""];
    let rows = report.parameters.iter().map(|parameter| {
        vec![
            parameter.name.clone().unwrap_or_else(|| "-".to_owned()),
            parameter.id.to_string(),
            grouped(parameter.elements_count),
            shown(parameter.images_bytes),
            note(
                report.verified.as_ref(),
                parameter.id,
                &parameter.zero_states,
                report.states.len(),
            ),
        ]
    });
    text + &parameters_table(&header, rows, limit)
}
