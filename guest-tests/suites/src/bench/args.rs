//! The command line of `svadev-bench`.
use std::path::PathBuf;
use std::time::Duration;

use super::SUITES;

/// What was asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Args {
    /// Suites to run, by name; empty: all but those that run on request only.
    pub suites: Vec<String>,
    /// Fewer cases, shorter.
    pub quick: bool,
    /// How long a case is measured, without its preparation.
    pub per_case: Duration,
    /// How long the soak lasts.
    pub soak: Duration,
    /// Device nodes to use; empty: all.
    pub functions: Vec<PathBuf>,
}

/// Seconds of measuring in a case, unless the command line says otherwise.
const PER_CASE_S: f64 = 0.8;
/// The same with `--quick`.
const QUICK_PER_CASE_S: f64 = 0.2;
/// Seconds of soaking unless the command line says otherwise.
const SOAK_S: f64 = 60.0;
/// Bounds of what can be asked for.
const SECONDS: std::ops::RangeInclusive<f64> = 0.01..=3600.0;

const USAGE: &str =
    "usage: svadev-bench [--suite NAME]… [--quick] [--seconds-per-case S] [--seconds S] [--function PATH…]";

impl Args {
    /// Read a command line, program name excluded.
    ///
    /// # Errors
    /// A text for the user.
    pub fn parse(args: impl IntoIterator<Item = String>) -> Result<Self, String> {
        let (mut suites, mut functions) = (Vec::new(), Vec::new());
        let (mut quick, mut per_case_s, mut soak_s) = (false, None, SOAK_S);
        let mut args = args.into_iter().peekable();
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--suite" => suites.push(suite(args.next())?),
                "--quick" => quick = true,
                "--seconds-per-case" => per_case_s = Some(seconds(&arg, args.next())?),
                "--seconds" => soak_s = seconds(&arg, args.next())?,
                "--function" => {
                    functions.push(args.next().ok_or("--function needs a path")?.into());
                    while let Some(path) = args.next_if(|next| !next.starts_with('-')) {
                        functions.push(path.into());
                    }
                }
                other => return Err(format!("unknown argument {other}; {USAGE}")),
            }
        }
        let per_case_s = per_case_s.unwrap_or(if quick { QUICK_PER_CASE_S } else { PER_CASE_S });
        let (per_case, soak) = (Duration::from_secs_f64(per_case_s), Duration::from_secs_f64(soak_s));
        Ok(Self { suites, quick, per_case, soak, functions })
    }
}

fn suite(name: Option<String>) -> Result<String, String> {
    let known: Vec<&str> = SUITES.iter().map(|suite| suite.name).collect();
    let name = name.ok_or("--suite needs a name")?;
    match known.contains(&name.as_str()) {
        true => Ok(name),
        false => Err(format!("unknown suite {name}; there are {}", known.join(", "))),
    }
}

fn seconds(option: &str, text: Option<String>) -> Result<f64, String> {
    let text = text.ok_or(format!("{option} needs a number"))?;
    let number = text.parse().ok().filter(|s| SECONDS.contains(s));
    number.ok_or(format!("{option} {text}: a number from {} to {} is wanted", SECONDS.start(), SECONDS.end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Args, String> {
        Args::parse(args.iter().map(|&a| a.to_owned()))
    }

    #[test]
    fn everything_has_a_default() {
        let args = parse(&[]).unwrap();
        assert!(args.suites.is_empty() && args.functions.is_empty() && !args.quick);
        assert_eq!(args.per_case, Duration::from_millis(800));
        assert_eq!(parse(&["--quick"]).unwrap().per_case, Duration::from_millis(200));
    }

    #[test]
    fn options_repeat_and_take_lists() {
        let args = parse(&[
            "--suite",
            "copy",
            "--function",
            "/dev/svadev1",
            "/dev/svadev0",
            "--suite",
            "soak",
            "--seconds",
            "5",
            "--seconds-per-case",
            "0.5",
            "--function",
            "/dev/svadev2",
        ]);
        let args = args.unwrap();
        assert_eq!(args.suites, ["copy", "soak"]);
        assert_eq!(args.functions, ["/dev/svadev1", "/dev/svadev0", "/dev/svadev2"].map(PathBuf::from));
        assert_eq!((args.per_case, args.soak), (Duration::from_millis(500), Duration::from_secs(5)));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for args in [
            &["--suite"][..],
            &["--suite", "dance"],
            &["--seconds", "x"],
            &["--seconds-per-case", "0"],
            &["--seconds-per-case", "inf"],
            &["--seconds", "-1"],
            &["--function"],
            &["copy"],
        ] {
            assert!(parse(args).is_err(), "{args:?}");
        }
    }
}
