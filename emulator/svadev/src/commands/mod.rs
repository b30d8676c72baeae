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

use crate::cli::Command;
use svadev_launcher::exit::Outcome;

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
        Command::Kit(command) => kit::run(command),
    }
}
