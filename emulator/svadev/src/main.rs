//! `svadev`: a shared-virtual-addressing accelerator and its IOMMU as one process beside stock QEMU.
//!
//! This crate is the program: `cli` reads the command line, `commands` has a module per subcommand.
//! [`svadev_launcher`] takes a guest from choices to exit status. [`svadev_bench`] measures and reports.

#[macro_use]
extern crate svadev_launcher;

mod cli;
mod commands;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    start_logging(cli.verbose);
    match commands::run(cli.command) {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            say!("error: {failure}");
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
