//! The command line.

use std::path::PathBuf;

use tensorswap::base::config::Config;

const HELP: &str = "\
cargo bench --bench swap -- [options]
  --rounds N      rounds, at least 5 for figures that count (default 7)
  --quick         3 rounds of an eighth of the work: shows that everything runs, nothing more
  --dir D         where the files go (default: a directory under target/)
  --only TEXT     only scenarios whose names contain TEXT; may be repeated: any of them
  --who TEXT      only contestants whose names contain TEXT; may be repeated
  --set KEY=VALUE an option of the engine, as in its configuration; may be repeated
  --markdown      the tables as markdown";

/// What was asked for.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) rounds: usize,
    pub(crate) quick: bool,
    pub(crate) directory: PathBuf,
    only: Vec<String>,
    who: Vec<String>,
    pub(crate) markdown: bool,
    pub(crate) config: Config,
}

impl Options {
    /// Reads the command line; the text to show where that is not possible.
    pub(crate) fn from_arguments() -> Result<Options, String> {
        let target = std::env::var_os("CARGO_TARGET_TMPDIR").map(PathBuf::from);
        let mut options = Options {
            rounds: 7,
            quick: false,
            directory: target
                .unwrap_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")))
                .join("bench-swap"),
            only: Vec::new(),
            who: Vec::new(),
            markdown: false,
            config: Config::new(),
        };
        let mut rounds = None;
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| HELP.to_owned());
            match argument.as_str() {
                "--rounds" => rounds = Some(value()?.parse::<usize>().map_err(|_| HELP)?.max(1)),
                "--quick" => options.quick = true,
                "--dir" => options.directory = PathBuf::from(value()?),
                "--only" => options.only.push(value()?),
                "--who" => options.who.push(value()?),
                "--set" => {
                    let pair = value()?;
                    let (key, value) = pair.split_once('=').ok_or(HELP)?;
                    options
                        .config
                        .set(key, value)
                        .map_err(|error| error.to_string())?;
                }
                "--markdown" => options.markdown = true,
                // What cargo adds.
                "--bench" => {}
                _ => return Err(HELP.to_owned()),
            }
        }
        options.rounds = rounds.unwrap_or(if options.quick { 3 } else { options.rounds });
        Ok(options)
    }

    /// Whether a scenario was asked for.
    pub(crate) fn wants_scenario(&self, name: &str) -> bool {
        contains_any(name, &self.only)
    }

    /// Whether a contestant was asked for.
    pub(crate) fn wants_contestant(&self, name: &str) -> bool {
        contains_any(name, &self.who)
    }
}

fn contains_any(name: &str, texts: &[String]) -> bool {
    texts.is_empty() || texts.iter().any(|text| name.contains(text))
}
