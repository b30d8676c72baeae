//! `svadev`: a shared-virtual-addressing accelerator and its IOMMU as one process beside stock QEMU.
//!
//! This crate is the command line. It knows the arguments (it alone knows clap), what to print, and the exit status. It
//! must not know QEMU, sockets or devices: [`svadev_launcher`] takes a guest from choices to its exit status, and
//! [`svadev_bench`] measures and reports.
//!
//! The path: `main` parses [`cli::Cli`]. `commands::run` calls the subcommand's module. That turns the arguments into
//! the launcher's plain structures, runs the guest, shows what the guest says, and returns the exit status.
//!
//! Where new things go: an option in `cli.rs`, a subcommand in `commands/`, anything that another program could use in
//! the launcher or the bench.

#[macro_use]
extern crate svadev_launcher;

mod cli;
mod commands;
mod config;

use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _};
use svadev_launcher::say::Style;

fn main() -> ExitCode {
    let cli = match config::with_defaults(cli::Cli::command()) {
        Ok(command) => cli::Cli::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit()),
        Err(failure) => {
            say!("error: {failure}");
            return ExitCode::from(failure.exit.code());
        }
    };
    svadev_launcher::say::set_quiet(cli.quiet);
    svadev_launcher::say::set_color(match cli.color {
        cli::ColorWhen::Auto => None,
        cli::ColorWhen::Always => Some(true),
        cli::ColorWhen::Never => Some(false),
    });
    start_logging(cli.verbose);
    match commands::run(cli.command) {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            say!("{} {failure}", Style::Bad.on("error:"));
            ExitCode::from(failure.exit.code())
        }
    }
}

/// Logs go to standard error; `SVADEV_LOG` filters them as `tracing_subscriber::EnvFilter` reads it.
fn start_logging(verbose: u8) {
    let default = match verbose {
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("SVADEV_LOG").unwrap_or_else(|_| default.into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .without_time()
        .init();
}
