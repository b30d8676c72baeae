//! The command line of `svadev-smoke`.

use super::{Case, Rng};

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Args {
    /// Print names, run nothing.
    pub list: bool,
    /// Functions of the machine, if they cannot be counted.
    pub functions: Option<usize>,
    /// Seed of every test's data, and of the order if it is shuffled.
    pub seed: u64,
    /// Run the tests in an order that follows from the seed.
    pub shuffle: bool,
    /// Run every test this many times, at least once.
    pub repeat: u32,
    /// Skip what comes after a test that failed.
    pub fail_fast: bool,
    /// Run part I of N parts, counted from 1, which are as large as each other.
    pub shard: Option<(usize, usize)>,
    /// Run what contains any of these; empty: everything.
    pub filters: Vec<String>,
    /// Of that, leave out what contains any of these.
    pub exclude: Vec<String>,
}

/// Seed unless `--seed` says otherwise: a run is the same as the last one.
pub const DEFAULT_SEED: u64 = 0x5eed;

const USAGE: &str = "usage: svadev-smoke [--list] [--functions N] [--seed N] [--shuffle] [--repeat N] [--fail-fast] \
                     [--shard I/N] [--exclude TEXT]… [FILTER]…";

impl Args {
    /// Read a command line, program name excluded.
    ///
    /// # Errors
    /// A text for the user: an unknown option, or one with a bad value.
    pub fn parse(args: impl IntoIterator<Item = String>) -> Result<Self, String> {
        let mut parsed = Self {
            list: false,
            functions: None,
            seed: DEFAULT_SEED,
            shuffle: false,
            repeat: 1,
            fail_fast: false,
            shard: None,
            filters: Vec::new(),
            exclude: Vec::new(),
        };
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
            match arg.as_str() {
                "--list" => parsed.list = true,
                "--shuffle" => parsed.shuffle = true,
                "--fail-fast" => parsed.fail_fast = true,
                "--seed" => parsed.seed = seed(&value()?)?,
                "--functions" => parsed.functions = Some(positive(&arg, &value()?)?),
                "--repeat" => {
                    let times = positive(&arg, &value()?)?;
                    parsed.repeat = u32::try_from(times).map_err(|e| format!("--repeat {times}: {e}"))?;
                }
                "--shard" => parsed.shard = Some(shard(&value()?)?),
                "--exclude" => parsed.exclude.push(value()?),
                option if option.starts_with('-') => return Err(format!("unknown option {option}; {USAGE}")),
                _ => parsed.filters.push(arg),
            }
        }
        Ok(parsed)
    }

    /// The cases to run, in order. Shards are parts of what the filters leave, and do not depend on the order.
    #[must_use]
    pub fn select(&self, cases: Vec<Case>) -> Vec<Case> {
        let matching = cases.into_iter().filter(|case| self.matches(&case.name()));
        let mut selected: Vec<Case> = match self.shard {
            Some((part, parts)) => matching.skip(part - 1).step_by(parts).collect(),
            None => matching.collect(),
        };
        if self.shuffle {
            let mut rng = Rng::new(self.seed, "the order of tests");
            // Fisher and Yates, as Durstenfeld does it.
            for left in (1..selected.len()).rev() {
                selected.swap(left, rng.below(left + 1));
            }
        }
        selected
    }

    fn matches(&self, name: &str) -> bool {
        let has = |texts: &[String]| texts.iter().any(|text| name.contains(text.as_str()));
        (self.filters.is_empty() || has(&self.filters)) && !has(&self.exclude)
    }
}

fn positive(option: &str, text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&n| n > 0).ok_or_else(|| format!("{option} {text}: write a number from 1 on"))
}

/// I/N, with I from 1 to N.
fn shard(text: &str) -> Result<(usize, usize), String> {
    let parse = || {
        let (part, parts) = text.split_once('/')?;
        let (part, parts) = (part.parse().ok()?, parts.parse().ok()?);
        (1..=parts).contains(&part).then_some((part, parts))
    };
    parse().ok_or_else(|| format!("--shard {text}: write I/N, with I from 1 to N"))
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
    use crate::harness::cases;
    use crate::smoke;

    fn parse(args: &[&str]) -> Result<Args, String> {
        Args::parse(args.iter().map(|&a| a.to_owned()))
    }

    #[test]
    fn options_and_filters() {
        let args = parse(&["--list", "--seed", "0x10", "copy", "L3"]).unwrap();
        assert!(args.list && args.seed == 16);
        assert!(args.matches("copy.sizes/svadev0") && args.matches("lifetime.L3.x") && !args.matches("fault.hole"));
        assert!(parse(&[]).unwrap().matches("anything"));
        let args = parse(&["--exclude", "huge", "copy"]).unwrap();
        assert!(args.matches("copy.sizes") && !args.matches("copy.huge") && !args.matches("fill.huge"));
    }

    #[test]
    fn shards_run_every_test_once_whatever_their_order() {
        let all: Vec<Case> = cases(&smoke::tests(), 2);
        let names = |args: &[&str]| -> Vec<String> {
            parse(args).unwrap().select(all.clone()).iter().map(Case::name).collect()
        };
        let whole = names(&[]);
        for parts in [1, 2, 3, 7] {
            let mut together: Vec<String> =
                (1..=parts).flat_map(|part| names(&["--shuffle", "--shard", &format!("{part}/{parts}")])).collect();
            together.sort();
            let mut sorted = whole.clone();
            sorted.sort();
            assert_eq!(together, sorted, "{parts} shards");
        }
        let (one, two) = (names(&["--shuffle", "--seed", "1"]), names(&["--shuffle", "--seed", "2"]));
        assert!(one != two && one != whole && one == names(&["--shuffle", "--seed", "1"]));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for args in [
            &["--seed"][..],
            &["--seed", "x"],
            &["--frobnicate"],
            &["--shard", "0/2"],
            &["--shard", "3/2"],
            &["--shard", "2"],
            &["--repeat", "0"],
            &["--exclude"],
        ] {
            assert!(parse(args).is_err(), "{args:?}");
        }
    }
}
