//! Serial ports: opening one and choosing its line discipline.
use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context, Result};
use nix::sys::termios::{
    ControlFlags, InputFlags, LocalFlags, OutputFlags, SetArg, SpecialCharacterIndices, cfmakeraw, tcgetattr, tcsetattr,
};

/// The port that carries control lines.
pub(crate) const CONTROL: &str = "/dev/ttyS1";
/// The port that carries the guest program's standard input, output and error.
pub(crate) const PROGRAM: &str = "/dev/ttyS2";

/// What a port does to the bytes that pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Discipline {
    /// Nothing: bytes go through as they are.
    Raw,
    /// What a person at a terminal expects: echo, line editing, signals from the keyboard, `\n` shown as `\r\n`.
    Terminal,
}

/// Open a port for reading and writing, not as controlling terminal, close-on-exec, and set its discipline.
///
/// # Errors
/// The port's node or the UART behind it is missing.
pub(crate) fn open(path: &str, discipline: Discipline) -> Result<File> {
    let port = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY | libc::O_CLOEXEC)
        .open(path)
        .with_context(|| format!("open {path}"))?;
    configure(&port, discipline).with_context(|| format!("set up {path}: is there a UART?"))?;
    Ok(port)
}

/// Set a port's discipline.
fn configure(port: impl AsFd, discipline: Discipline) -> Result<()> {
    let mut t = tcgetattr(port.as_fd())?;
    cfmakeraw(&mut t);
    if discipline == Discipline::Terminal {
        t.input_flags |= InputFlags::ICRNL | InputFlags::IUTF8;
        t.output_flags |= OutputFlags::OPOST | OutputFlags::ONLCR;
        t.local_flags |= LocalFlags::ISIG
            | LocalFlags::ICANON
            | LocalFlags::IEXTEN
            | LocalFlags::ECHO
            | LocalFlags::ECHOE
            | LocalFlags::ECHOK
            | LocalFlags::ECHOCTL
            | LocalFlags::ECHOKE;
    }
    t.control_chars[SpecialCharacterIndices::VMIN as usize] = 1;
    t.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
    // No modem behind the port: a carrier that is not there must not block an open or end a session.
    t.control_flags |= ControlFlags::CLOCAL | ControlFlags::CREAD;
    t.control_flags &= !ControlFlags::HUPCL;
    // QEMU's UART has no wire to be slow on, but the kernel's waits for "sent" are sized by this rate.
    // Set by its bits: cfsetspeed(3) is bound to a symbol version that a static C library does not have.
    t.control_flags &= !ControlFlags::from_bits_retain(libc::CBAUD);
    t.control_flags |= ControlFlags::from_bits_retain(libc::B115200);
    tcsetattr(port.as_fd(), SetArg::TCSANOW, &t)?;
    Ok(())
}
