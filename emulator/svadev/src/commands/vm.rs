//! `svadev vm`: a guest to use.
use std::{collections::BTreeMap, io::IsTerminal as _};

use serde::Serialize;

use super::json::{check_writable, write_json};
use crate::cli::VmArgs;
use svadev_launcher::{
    console,
    control::Message,
    exit::{Exit, Outcome},
    guest::{self, Image, Request},
    guest_image::{Job, SHARE},
    results::{Framed, Kind},
    run::{Ended, Observer, Terminal},
    say::is_quiet,
};

/// Runs the guest. The exit status is that of the program, if there is one.
pub(crate) fn run(args: &VmArgs) -> Outcome<u8> {
    check_writable(args.json.as_deref())?;
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
    let mut observer = Kernel { show: !is_quiet() };
    let mut finished = guest::run(request, &mut observer)?;
    let findings = finished.report.kernel_log.findings().to_vec();
    let ended = finished.conclude(false);
    let end = End::of(&ended, runs_program, findings);
    if let (By::Program, 1..) = (end.by, end.status) {
        note!("the program ended with status {}", end.status);
    }
    for finding in &end.kernel_log {
        note!("kernel log: {finding}");
    }
    let written = args.json.as_deref().map_or(Ok(()), |path| write_json(path, &Framed::new(Kind::Vm, &end)));
    ended?;
    // The program's own status counts more than a file that cannot be written.
    if end.status == 0 { written.map(|()| 0) } else { Ok(end.status) }
}

/// How it ended, as `--json` writes it.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct End {
    /// The exit status.
    status: u8,
    /// Whose it is.
    by: By,
    /// What failed, if the status is ours and not 0.
    #[serde(skip_serializing_if = "String::is_empty")]
    failure: String,
    /// Lines of the kernel log that mean that something went wrong.
    kernel_log: Vec<String>,
}

/// Whose a status is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum By {
    /// The program's in the guest.
    Program,
    /// This program's.
    Svadev,
}

impl End {
    fn of(ended: &Outcome<Ended>, runs_program: bool, kernel_log: Vec<String>) -> Self {
        let (status, by, failure) = match ended {
            Ok(Ended::Exit(status)) if runs_program => (*status, By::Program, String::new()),
            // An interactive shell ends with the status of its last command, which is not a failure of the run.
            Ok(_) => (Exit::Success.code(), By::Svadev, String::new()),
            Err(failure) => (failure.exit.code(), By::Svadev, failure.to_string()),
        };
        Self { status, by, failure, kernel_log }
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
    let cwd = args.share.as_ref().map(|_| SHARE.to_owned());
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
            svadev_launcher::say::error_line(format_args!("{line}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use svadev_launcher::exit::Failure;

    #[test]
    fn a_status_says_whose_it_is() {
        let program = End::of(&Ok(Ended::Exit(123)), true, Vec::new());
        assert_eq!((program.status, program.by), (123, By::Program));
        let hung = End::of(&Err(Failure::new(Exit::GuestHung, "it hangs")), true, Vec::new());
        assert_eq!((hung.status, hung.by, hung.failure.as_str()), (123, By::Svadev, "it hangs"));
        assert_eq!(End::of(&Ok(Ended::Exit(3)), false, Vec::new()).status, 0, "a shell's last command");
    }
}
