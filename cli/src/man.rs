//! Manual pages and shell completions, made from the command line's own description.

use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::arguments::Arguments;
use crate::failure::{Failure, Outcome};
use crate::output;

/// Print a shell's completions of the commands and options
///
/// For bash: tensorswap completions bash > ~/.local/share/bash-completion/completions/tensorswap
#[derive(Debug, Args)]
pub(crate) struct CompletionsOptions {
    /// The shell
    shell: Shell,
}

/// Write the manual pages into a directory
#[derive(Debug, Args)]
pub(crate) struct ManOptions {
    /// The directory, which exists
    directory: PathBuf,
}

pub(crate) fn completions(options: &CompletionsOptions) -> Result<Outcome, Failure> {
    let mut text = Vec::new();
    let mut command = Arguments::command();
    clap_complete::generate(options.shell, &mut command, "tensorswap", &mut text);
    output::print(&String::from_utf8_lossy(&text))?;
    Ok(Outcome::Well)
}

pub(crate) fn pages(options: &ManOptions) -> Result<Outcome, Failure> {
    let mut root = Arguments::command();
    root.build();
    let shown = root
        .get_subcommands()
        .filter(|command| !command.is_hide_set());
    let mut commands: Vec<clap::Command> = shown.cloned().collect();
    commands.push(root.clone());
    for command in commands {
        let name = command
            .get_display_name()
            .unwrap_or("tensorswap")
            .to_owned();
        let mut page = Vec::new();
        clap_mangen::Man::new(command).date("").render(&mut page)?;
        let path = options.directory.join(format!("{name}.1"));
        std::fs::write(&path, page).map_err(Failure::at("write", &path))?;
    }
    Ok(Outcome::Well)
}
