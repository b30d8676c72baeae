//! `svadev`: a shared-virtual-addressing accelerator and its IOMMU as one process beside stock QEMU.
//!
//! This crate is the only one that sees every side. `backend` makes a host of a topology; everything
//! else is the launcher: command line, topology, kit, guest image, QEMU, and what the guest says.
#![allow(unreachable_pub, reason = "a program: `pub` says what a module offers the others")]

#[macro_use]
mod say;

mod backend;
mod bench;
mod cli;
mod commands;
mod console;
mod control;
mod dmar;
mod exit;
mod guest;
mod guest_image;
mod kernel;
mod kernel_log;
mod kit;
mod ktap;
mod kvm;
mod qemu;
mod run;
mod runtime;
mod topology;

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
