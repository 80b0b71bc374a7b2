//! Manual pages and shell completions, made from the command line's own description.

use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::arguments::{Arguments, EXIT_STATUS};
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
        let page = page_of(command)?;
        let path = options.directory.join(format!("{name}.1"));
        std::fs::write(&path, page).map_err(Failure::at("write", &path))?;
    }
    Ok(Outcome::Well)
}

/// One page. How runs end is a section of its own, on every page.
fn page_of(command: clap::Command) -> Result<Vec<u8>, Failure> {
    let has_commands = command.get_subcommands().next().is_some();
    let man = clap_mangen::Man::new(command).date("");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if has_commands {
        man.render_subcommands_section(&mut page)?;
    }
    page.extend_from_slice(b".SH \"EXIT STATUS\"\n");
    for line in EXIT_STATUS.lines().skip(1) {
        let line = line.trim_start();
        let entry = match line.split_once("  ") {
            Some((status, meaning)) => format!(".TP\n.B {status}\n{meaning}\n"),
            None => format!(".PP\n{line}\n"),
        };
        page.extend_from_slice(entry.as_bytes());
    }
    man.render_version_section(&mut page)?;
    Ok(page)
}
