//! The command line of `svadev-smoke`.

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Args {
    /// Print names, run nothing.
    pub list: bool,
    /// Seed of every test's data.
    pub seed: u64,
    /// Run what contains any of these; empty: everything.
    pub filters: Vec<String>,
}

/// Seed unless `--seed` says otherwise: a run is the same as the last one.
pub const DEFAULT_SEED: u64 = 0x5eed;

impl Args {
    /// Read a command line, program name excluded.
    ///
    /// # Errors
    /// A text for the user: an unknown option or a bad seed.
    pub fn parse(args: impl IntoIterator<Item = String>) -> Result<Self, String> {
        let mut parsed = Self { list: false, seed: DEFAULT_SEED, filters: Vec::new() };
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--list" => parsed.list = true,
                "--seed" => parsed.seed = seed(&args.next().ok_or("--seed needs a number")?)?,
                option if option.starts_with('-') => {
                    return Err(format!("unknown option {option}; usage: svadev-smoke [--list] [--seed N] [FILTER]…"));
                }
                _ => parsed.filters.push(arg),
            }
        }
        Ok(parsed)
    }

    /// Whether a name is to be run.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        self.filters.is_empty() || self.filters.iter().any(|f| name.contains(f.as_str()))
    }
}

/// A decimal or `0x` number.
fn seed(text: &str) -> Result<u64, String> {
    let number = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    number.map_err(|e| format!("--seed {text}: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Args, String> {
        Args::parse(args.iter().map(|&a| a.to_owned()))
    }

    #[test]
    fn options_and_filters() {
        let args = parse(&["--list", "--seed", "0x10", "copy", "L3"]).unwrap();
        assert!(args.list && args.seed == 16);
        assert!(args.matches("copy.sizes/svadev0") && args.matches("lifetime.L3.x") && !args.matches("fault.hole"));
        assert!(parse(&[]).unwrap().matches("anything"));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for args in [&["--seed"][..], &["--seed", "x"], &["--frobnicate"]] {
            assert!(parse(args).is_err(), "{args:?}");
        }
    }
}
