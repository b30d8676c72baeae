//! The subcommands.
mod bench;
mod demo;
mod doctor;
mod json;
mod kit;
mod manual;
mod report;
mod result_files;
mod serve;
mod socket_dir;
mod test;
mod vm;

use anyhow::Context as _;
use clap::CommandFactory as _;

use crate::cli::{Cli, Command};
use svadev_launcher::{
    exit::{Exit, OrExit as _, Outcome},
    files::{self, STANDARD_OUTPUT},
};

/// Runs a subcommand; gives the exit status.
pub(crate) fn run(command: Command) -> Outcome<u8> {
    match command {
        Command::Vm(args) => vm::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::QemuArgs(args) => manual::qemu_args(&args),
        Command::Dmar(args) => manual::dmar(&args),
        Command::Report(command) => report::run(&command),
        Command::Doctor(args) => doctor::run(&args),
        Command::Clean(args) => doctor::clean(&args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "svadev", &mut script);
            files::write(STANDARD_OUTPUT.as_ref(), &script).or_exit(Exit::Usage)?;
            Ok(Exit::Success.code())
        }
        Command::Man { folder } => {
            std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string()).or_exit(Exit::Usage)?;
            clap_mangen::generate_to(Cli::command(), &folder)
                .with_context(|| folder.display().to_string())
                .or_exit(Exit::Usage)?;
            Ok(Exit::Success.code())
        }
        Command::Kit(command) => kit::run(command),
    }
}
