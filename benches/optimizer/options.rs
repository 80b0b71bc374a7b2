//! The command line.

use std::path::PathBuf;

const HELP: &str = "\
cargo bench --bench optimizer -- [options]
  --rounds N       rounds, at least 5 for figures that count (default 5)
  --steps N        steps of a case that count in each round (default 2)
  --elements N     elements of each parameter of the uniform model (default 8388608)
  --parameters N   parameters of the uniform model (default 32)
  --scale N        an Nth of the elements of every parameter (default 1)
  --dir D          where the store lies (default: a directory under target/)
  --only TEXT      only cases whose names contain TEXT; may be repeated: any of them
  --set KEY=VALUE  an option of engine or optimizer for every case; may be repeated
  --records N      instead: registering, committing and opening N tiny parameters
  --markdown       the tables as markdown";

/// What was asked for.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) rounds: usize,
    pub(crate) steps: usize,
    pub(crate) elements: usize,
    pub(crate) parameters: usize,
    pub(crate) scale: usize,
    pub(crate) directory: PathBuf,
    only: Vec<String>,
    pub(crate) settings: Vec<(String, String)>,
    pub(crate) records: Option<u64>,
    pub(crate) markdown: bool,
}

impl Options {
    /// Reads the command line; the text to show where that is not possible.
    pub(crate) fn from_arguments() -> Result<Options, String> {
        let target = std::env::var_os("CARGO_TARGET_TMPDIR").map(PathBuf::from);
        let mut options = Options {
            rounds: 5,
            steps: 2,
            elements: 8 << 20,
            parameters: 32,
            scale: 1,
            directory: target
                .unwrap_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")))
                .join("bench-optimizer"),
            only: Vec::new(),
            settings: Vec::new(),
            records: None,
            markdown: false,
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| HELP.to_owned());
            let count = |text: String| text.parse::<usize>().map_err(|_| HELP.to_owned());
            match argument.as_str() {
                "--rounds" => options.rounds = count(value()?)?.max(1),
                "--steps" => options.steps = count(value()?)?.max(1),
                "--elements" => options.elements = count(value()?)?.max(1),
                "--parameters" => options.parameters = count(value()?)?.max(1),
                "--scale" => options.scale = count(value()?)?.max(1),
                "--dir" => options.directory = PathBuf::from(value()?),
                "--only" => options.only.push(value()?),
                "--set" => {
                    let pair = value()?;
                    let (key, value) = pair.split_once('=').ok_or(HELP)?;
                    options.settings.push((key.to_owned(), value.to_owned()));
                }
                "--records" => options.records = Some(value()?.parse().map_err(|_| HELP)?),
                "--markdown" => options.markdown = true,
                // What cargo adds.
                "--bench" => {}
                _ => return Err(HELP.to_owned()),
            }
        }
        Ok(options)
    }

    /// Whether a case was asked for.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|text| name.contains(text))
    }
}
