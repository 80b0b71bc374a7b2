//! The command line, and what is said where it makes no sense.

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

use crate::failure::{Failure, Outcome};
use crate::{bench, doctor, inspect, man, output, plan, rebalance, reshard, tune};

/// How every command ends: a title, a line for each status, and a remark. Part of the help and of
/// every page of the manual.
pub(crate) const EXIT_STATUS: &str = "\
Exit status:
  0  all is well
  1  what was looked at is not: doctor found a problem, a store is damaged, data came back wrong
  2  the command line, or a file that it names, makes no sense
  3  the machine refused: no permission, nothing there, no space, storage failed
  A signal ends the process as that signal; temporary files are removed first.";

/// Looks at machines, drives and stores for tensorswap, which keeps training state on NVMe
#[derive(Debug, Parser)]
#[command(
    name = "tensorswap",
    version,
    after_help = EXIT_STATUS,
    propagate_version = true,
    disable_help_subcommand = true,
    max_term_width = 100
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Doctor(doctor::Options),
    Bench(bench::Options),
    Tune(tune::Options),
    Inspect(inspect::Options),
    Plan(plan::Options),
    Rebalance(rebalance::Options),
    Reshard(reshard::Options),
    Completions(man::CompletionsOptions),
    #[command(hide = true)]
    Man(man::ManOptions),
}

/// What is answered to a command line that is not run: help and version go to standard output, and
/// of an error the line that says what is wrong is kept.
pub(crate) fn answer(error: &clap::Error) -> Result<Outcome, Failure> {
    let text = error.render();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            output::print(&text.ansi().to_string())?;
            Ok(Outcome::Well)
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => Err(
            Failure::wrong("a command is missing; see tensorswap --help"),
        ),
        _ => Err(Failure::wrong(in_one_line(&text.to_string()))),
    }
}

/// The message of an error of the command line without usage and hints about help.
fn in_one_line(text: &str) -> String {
    let said = text.split("\n\nUsage:").next().unwrap_or(text);
    let said = said
        .split("\n\nFor more information")
        .next()
        .unwrap_or(said);
    let words: Vec<&str> = said.split_whitespace().collect();
    let line = words.join(" ");
    line.strip_prefix("error: ").unwrap_or(&line).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn an_error_is_one_line_that_names_what_is_wrong() {
        for (line, part) in [
            (vec!["tensorswap", "bench", "--bogus"], "'--bogus'"),
            (
                vec!["tensorswap", "bench", "--size", "many"],
                "no size; write",
            ),
            (vec!["tensorswap", "inspect"], "<STORE>"),
            (
                vec!["tensorswap", "benhc"],
                "similar subcommand exists: 'bench'",
            ),
        ] {
            let error = Arguments::try_parse_from(line).unwrap_err();
            let Err(Failure::Wrong(message)) = answer(&error) else {
                panic!("{error}");
            };
            assert!(
                message.contains(part) && !message.contains('\n'),
                "{message}"
            );
            assert!(!message.starts_with("error"), "{message}");
        }
    }
}
