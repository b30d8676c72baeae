//! The control lines from PID 1 to the launcher.
use std::fs::File;
use std::io::Write;
use std::sync::{Mutex, PoisonError};

use crate::{kmsg, serial};

/// Longest payload of one line, bytes; the rest is cut off. A guest program's endless line must not become our memory.
const MAX_PAYLOAD: usize = 16 * 1024;

/// Where control lines go. Lines of different threads never mix: each is one write under one lock.
pub(crate) struct Control {
    port: Mutex<Port>,
}

/// A control port, or what stands in for it.
enum Port {
    Serial(File),
    /// No second serial port: a person booted this by hand. The kernel log shows what would have been said.
    KernelLog,
}

impl Control {
    /// Open the control port; without one, control lines go to the kernel log.
    pub(crate) fn open() -> Self {
        let port = match serial::open(serial::CONTROL, serial::Discipline::Raw) {
            Ok(file) => Port::Serial(file),
            Err(e) => {
                kmsg::say(&format!("no control port, control lines go here: {e:#}"));
                Port::KernelLog
            }
        };
        Self { port: Mutex::new(port) }
    }

    /// First line: which kernel this is.
    pub(crate) fn hello(&self, release: &str) {
        self.send("hello", release);
    }

    /// PID 1 is running.
    pub(crate) fn alive(&self) {
        self.send("alive", "");
    }

    /// The program's port takes input from here on; what came before is lost.
    pub(crate) fn ready(&self) {
        self.send("ready", "");
    }

    /// One line of KTAP.
    pub(crate) fn ktap(&self, line: &str) {
        self.send("ktap", line);
    }

    /// One JSON object.
    pub(crate) fn data(&self, object: &str) {
        self.send("data", object);
    }

    /// The guest's own set-up failed; drains the port, since power goes next.
    pub(crate) fn fatal(&self, text: &str) {
        self.send_and_drain("fatal", text);
    }

    /// The job's status; drains the port, since power goes next.
    pub(crate) fn exit(&self, status: u8) {
        self.send_and_drain("exit", &status.to_string());
    }

    /// As [`fatal`](Self::fatal), for a thread that may hold the lock: it would wait for itself.
    pub(crate) fn fatal_from_panic(&self, text: &str) {
        let Ok(mut port) = self.port.try_lock() else {
            // Another thread is writing, or this one was: say it on a port of our own, on a line of its own.
            let other = Self::open();
            other.send_and_drain("fatal", text);
            return;
        };
        port.write(&line("fatal", text));
        port.drain();
    }

    fn send(&self, word: &str, payload: &str) {
        // A panic of another thread ends the guest anyway; until it does, lines still count.
        self.port.lock().unwrap_or_else(PoisonError::into_inner).write(&line(word, payload));
    }

    fn send_and_drain(&self, word: &str, payload: &str) {
        let mut port = self.port.lock().unwrap_or_else(PoisonError::into_inner);
        port.write(&line(word, payload));
        port.drain();
    }
}

impl Port {
    fn write(&mut self, line: &str) {
        match self {
            // Nobody is left to tell about a dead port.
            Self::Serial(file) => _ = file.write_all(line.as_bytes()),
            Self::KernelLog => kmsg::say(line.trim_end()),
        }
    }

    fn drain(&self) {
        if let Self::Serial(file) = self
            && let Err(e) = nix::sys::termios::tcdrain(file)
        {
            kmsg::say(&format!("tcdrain of the control port: {e}"));
        }
    }
}

/// `svadev:<word> <payload>` with its end of line. The payload is one line, so what would end it is made a space.
fn line(word: &str, payload: &str) -> String {
    let end = floor_char_boundary(payload, MAX_PAYLOAD);
    let payload: String = payload[..end].chars().map(|c| if c == '\n' || c == '\r' { ' ' } else { c }).collect();
    let payload = payload.trim_end();
    if payload.is_empty() { format!("svadev:{word}\n") } else { format!("svadev:{word} {payload}\n") }
}

/// `str::floor_char_boundary`, which is younger than this project's compiler floor.
fn floor_char_boundary(text: &str, index: usize) -> usize {
    if index >= text.len() {
        return text.len();
    }
    (0..=index).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_its_word_its_payload_and_one_end() {
        assert_eq!(line("hello", "7.3.4"), "svadev:hello 7.3.4\n");
        assert_eq!(line("alive", ""), "svadev:alive\n");
        assert_eq!(line("fatal", "two\nlines\r\n"), "svadev:fatal two lines\n");
    }

    #[test]
    fn leading_blanks_stay_for_nested_ktap() {
        assert_eq!(line("ktap", "    ok 1 a"), "svadev:ktap     ok 1 a\n");
    }

    #[test]
    fn a_long_payload_is_cut_between_characters() {
        let text = "\u{20ac}".repeat(MAX_PAYLOAD);
        let cut = line("data", &text);
        assert!(cut.len() <= MAX_PAYLOAD + "svadev:data \n".len());
        assert!(cut.len() > MAX_PAYLOAD);
    }
}
