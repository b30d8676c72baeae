//! `svadev kit`: the set-up script, with our exit status.
use std::ffi::OsString;

use crate::cli::KitCommand;
use svadev_launcher::{
    exit::{Exit, Outcome},
    kit::{Stdout, run_script},
};

/// Runs it.
pub(crate) fn run(command: KitCommand) -> Outcome<u8> {
    let args: Vec<OsString> = match command {
        KitCommand::Setup { args } => std::iter::once("setup".into()).chain(args.into_iter().map(Into::into)).collect(),
        KitCommand::Status => vec!["status".into()],
        KitCommand::Clean => vec!["clean".into()],
    };
    run_script(&args, Stdout::Inherit)?;
    Ok(Exit::Success.code())
}
