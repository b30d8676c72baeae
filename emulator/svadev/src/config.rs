//! The configuration file: what one sets once. Each key is the default of the flag of the same name.
//!
//! A flag counts more than its variable `SVADEV_…`, and that more than the file.
use std::path::PathBuf;

use anyhow::{Context as _, anyhow};
use serde::Deserialize;
use svadev_launcher::exit::{Exit, OrExit as _, Outcome};

/// The keys. Values are checked as those of the flags are.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Config {
    qemu: Option<String>,
    kernel: Option<String>,
    busybox: Option<String>,
    guest_bin: Option<String>,
    accel: Option<String>,
    timeout_scale: Option<u32>,
    color: Option<String>,
}

/// Where the file is, if there is a home folder.
fn file() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let folder = absolute("XDG_CONFIG_HOME").or_else(|| std::env::home_dir().map(|home| home.join(".config")))?;
    Some(folder.join("svadev/config.toml"))
}

/// The command line's definition with the file's values as defaults.
///
/// Errors: the file cannot be read, or has a key that is none.
pub(crate) fn with_defaults(command: clap::Command) -> Outcome<clap::Command> {
    let Some(file) = file().filter(|file| file.exists()) else { return Ok(command) };
    let name = file.display().to_string();
    let text = std::fs::read_to_string(&file).with_context(|| name.clone()).or_exit(Exit::Usage)?;
    apply(command, &text).with_context(|| name).or_exit(Exit::Usage)
}

fn apply(mut command: clap::Command, text: &str) -> anyhow::Result<clap::Command> {
    let config: Config = toml::from_str(text).map_err(|error| anyhow!("{}", error.to_string().trim_end()))?;
    let Config { qemu, kernel, busybox, guest_bin, accel, timeout_scale, color } = config;
    let scale = timeout_scale.map(|scale| scale.to_string());
    for (id, value) in [
        ("qemu", qemu),
        ("kernel", kernel),
        ("busybox", busybox),
        ("guest_bin", guest_bin),
        ("accel", accel),
        ("timeout_scale", scale),
        ("color", color),
    ] {
        let Some(value) = value else { continue };
        let has = |command: &clap::Command| command.get_arguments().any(|arg| arg.get_id() == id);
        let set = |command: clap::Command| command.mut_arg(id, |arg| arg.default_value(value.clone()));
        if has(&command) {
            command = set(command);
        }
        for sub in command.get_subcommands_mut().filter(|sub| has(sub)) {
            *sub = set(std::mem::take(sub));
        }
    }
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::{CommandFactory as _, FromArgMatches as _};

    fn parse(config: &str, line: &[&str]) -> Cli {
        let matches = apply(Cli::command(), config).unwrap().try_get_matches_from(line).unwrap();
        Cli::from_arg_matches(&matches).unwrap()
    }

    #[test]
    fn a_flag_counts_more_than_the_file() {
        let config = "qemu = \"host\"\ntimeout-scale = 3\n";
        let options = |line: &[&str]| match parse(config, line).command {
            Command::Test(args) => (args.host.qemu.clone(), args.host.timeout_scale),
            _ => panic!("{line:?}"),
        };
        assert_eq!(options(&["svadev", "test"]), (Some("host".into()), 3));
        assert_eq!(options(&["svadev", "test", "--qemu", "/q", "--timeout-scale", "5"]), (Some("/q".into()), 5));
        // A command without the flag does not mind.
        let Command::Serve(args) = parse(config, &["svadev", "serve"]).command else { panic!("serve") };
        assert_eq!(args.timeout_scale, 3);
    }

    #[test]
    fn a_wrong_key_is_named_with_its_line() {
        let error = apply(Cli::command(), "\nquemu = \"host\"\n").unwrap_err().to_string();
        assert!(error.contains("quemu") && error.contains("line 2"), "{error}");
        let command = apply(Cli::command(), "accel = \"xen\"\n").unwrap();
        let error = command.try_get_matches_from(["svadev", "test"]).unwrap_err().to_string();
        assert!(error.contains("xen") && error.contains("tcg"), "{error}");
    }
}
