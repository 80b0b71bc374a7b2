//! What is told of a machine.

use std::fmt::Write;

use serde::Serialize;

use super::finding::{Finding, Health};
use super::place::Place;
use crate::output::{BAD, BOLD, DOUBTFUL, FAINT, GOOD, styled};

/// All that was found.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    pub(super) machine: Vec<Finding>,
    pub(super) places: Vec<Place>,
}

impl Report {
    fn all(&self) -> impl Iterator<Item = &Finding> {
        let places = self.places.iter().flat_map(|place| &place.findings);
        self.machine.iter().chain(places)
    }

    fn count(&self, health: Health) -> usize {
        self.all()
            .filter(|finding| finding.health == health)
            .count()
    }

    /// Whether nothing was found that is to be mended.
    pub(super) fn is_well(&self, strict: bool) -> bool {
        self.count(Health::Problem) == 0 && (!strict || self.count(Health::Remark) == 0)
    }

    /// The report for people.
    pub(super) fn text(&self) -> String {
        let mut text = section("machine", &self.machine);
        for place in &self.places {
            text += &format!("\n{}", section(&place.path, &place.findings));
        }
        let (problems, remarks) = (self.count(Health::Problem), self.count(Health::Remark));
        text += "\n";
        text += &match (problems, remarks) {
            (0, 0) => styled(GOOD, "all is well"),
            (0, remarks) => styled(DOUBTFUL, &format!("works; {}", counted(remarks, "remark"))),
            (problems, 0) => styled(BAD, &counted(problems, "problem")),
            (problems, remarks) => {
                let remarks = counted(remarks, "remark");
                styled(BAD, &format!("{}, {remarks}", counted(problems, "problem")))
            }
        };
        text + "\n"
    }
}

fn counted(count: usize, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        count => format!("{count} {what}s"),
    }
}

fn section(title: &str, findings: &[Finding]) -> String {
    let mut text = styled(BOLD, title) + "\n";
    for finding in findings {
        let mark = match finding.health {
            Health::Good => styled(GOOD, "ok"),
            Health::Remark => styled(DOUBTFUL, "--"),
            Health::Problem => styled(BAD, "!!"),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {mark}  {:<14} {}", finding.name, finding.seen);
        if let Some(meaning) = &finding.meaning {
            let _ = writeln!(text, "      {:<14} {}", "", styled(FAINT, meaning));
        }
        for command in &finding.mend {
            let _ = writeln!(text, "      {:<14} {}", "mend:", styled(BOLD, command));
        }
    }
    text
}
