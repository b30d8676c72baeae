//! `svadev doctor` and `svadev clean`.
use super::socket_dir::socket_dir;
use crate::cli::{CleanArgs, DoctorArgs};
use svadev_launcher::{
    doctor::{self, State},
    exit::{Exit, Failure, OrExit as _, Outcome},
    say::{Style, is_quiet},
};

/// Says what it found, a line or more each.
pub(crate) fn run(args: &DoctorArgs) -> Outcome<u8> {
    let topology = args.machine.topology()?;
    // Without a runtime folder there is no default folder of sockets.
    let sockets = socket_dir(None, None).ok();
    let findings = doctor::examine(&topology, &args.host.options(), sockets.as_deref());
    for finding in &findings {
        let word = match finding.state {
            State::Good if is_quiet() => continue,
            State::Good => Style::Good.on("ok  "),
            State::Lacking => Style::Aside.on("note"),
            State::Bad => Style::Bad.on("BAD "),
        };
        out!("{word} {}: {}", finding.about, finding.text);
    }
    let worst = findings.iter().map(|finding| finding.state).max();
    Ok(if worst == Some(State::Bad) { Exit::Setup } else { Exit::Success }.code())
}

/// Says what it removes.
pub(crate) fn clean(args: &CleanArgs) -> Outcome<u8> {
    let topology = args.backend.topology()?;
    let sockets = match &args.socket_dir {
        Some(folder) => Some(socket_dir(Some(folder), None)?),
        None => socket_dir(None, None).ok(),
    };
    let found = doctor::leftovers(&topology, sockets.as_deref(), args.kit).or_exit(Exit::Setup)?;
    let verb = if args.dry_run { "would remove" } else { "removed" };
    for leftover in &found {
        if !args.dry_run {
            let error =
                |error| Failure::new(Exit::Setup, format!("cannot remove {}: {error}", leftover.path.display()));
            doctor::remove(leftover).map_err(error)?;
        }
        out!("{verb} {} ({} KiB): {}", leftover.path.display(), leftover.bytes.div_ceil(1024), leftover.what);
    }
    if found.is_empty() {
        out!("nothing to remove");
    }
    Ok(Exit::Success.code())
}
