//! `svadev vm`: a guest to use.
use std::{collections::BTreeMap, io::IsTerminal as _};

use crate::cli::VmArgs;
use svadev_launcher::{
    console,
    control::Message,
    exit::{Exit, Outcome},
    guest::{self, Image, Request},
    guest_image::Job,
    run::{Ended, Observer, Terminal},
};

/// Runs the guest. The exit status is that of the program, if there is one.
pub(crate) fn run(args: &VmArgs) -> Outcome<u8> {
    let runs_program = !args.program.is_empty();
    let terminal = match (runs_program, &args.initrd, std::io::stdin().is_terminal()) {
        (false, ..) => Terminal::Shell,
        // Only our own PID 1 understands frames.
        (true, None, false) => Terminal::Frames,
        (true, ..) => Terminal::Streams,
    };
    let image = match &args.initrd {
        Some(file) => Image::Initrd { file, inject: args.inject },
        None => Image::Job { job: job(args, terminal), needs_module: false },
    };
    if !runs_program && std::io::stdin().is_terminal() {
        say!("Ctrl-A x ends the guest, Ctrl-A h helps");
    }
    let request = Request {
        command: "vm",
        topology: args.machine.topology()?,
        host: args.host.options(),
        image,
        share: args.share.as_deref(),
        terminal,
        until_placed: false,
    };
    let mut observer = Kernel { show: !args.quiet };
    match guest::run(request, &mut observer)?.conclude(false)? {
        // An interactive shell ends with the status of its last command, which is not a failure of the run.
        Ended::Exit(status) if runs_program => Ok(status),
        _ => Ok(Exit::Success.code()),
    }
}

fn job(args: &VmArgs, terminal: Terminal) -> Job {
    let mut env = BTreeMap::new();
    if let Ok(term) = std::env::var("TERM") {
        env.insert("TERM".to_owned(), term);
    }
    if let Some((lines, columns)) = console::window_size() {
        env.insert("LINES".to_owned(), lines.to_string());
        env.insert("COLUMNS".to_owned(), columns.to_string());
    }
    let mode = if args.program.is_empty() { "shell" } else { "run" };
    let cwd = args.share.as_ref().map(|_| "/mnt/share".to_owned());
    let framed_input = terminal == Terminal::Frames;
    Job { mode, argv: args.program.clone(), cwd, env, framed_input, ..Job::default() }
}

struct Kernel {
    show: bool,
}

impl Observer for Kernel {
    fn control(&mut self, _: &Message) {}
    fn kernel(&mut self, line: &str) {
        if self.show {
            use std::io::Write as _;
            _ = writeln!(std::io::stderr().lock(), "{line}");
        }
    }
}
