//! The part of the command line that all benchmarks have.

use std::path::PathBuf;

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Common {
    /// Rounds; medians of fewer than 5 are no figures
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// Where the files go [default: a directory under target/]
    #[arg(long, value_name = "D")]
    dir: Option<PathBuf>,
    /// Only what has TEXT in its name; may be repeated: any of them
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// An option of engine or optimizer, as in their configuration; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    pub(crate) set: Vec<(String, String)>,
    /// The tables as markdown
    #[arg(long)]
    pub(crate) markdown: bool,
    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Common {
    /// Rounds to be done, where so many are usual.
    pub(crate) fn rounds(&self, usual: usize) -> usize {
        self.rounds.unwrap_or(usual).max(1)
    }

    /// The directory for files, where the benchmark's own has this name.
    pub(crate) fn directory(&self, own: &str) -> PathBuf {
        let target = std::env::var_os("CARGO_TARGET_TMPDIR").map(PathBuf::from);
        let own = || {
            target
                .unwrap_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")))
                .join(own)
        };
        self.dir.clone().unwrap_or_else(own)
    }

    /// Whether this name was asked for.
    pub(crate) fn wants(&self, name: &str) -> bool {
        contains_any(name, &self.only)
    }
}

/// Whether a name has one of these texts in it, or there are none.
pub(crate) fn contains_any(name: &str, texts: &[String]) -> bool {
    texts.is_empty() || texts.iter().any(|text| name.contains(text))
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("KEY=VALUE is meant")?;
    Ok((key.to_owned(), value.to_owned()))
}
