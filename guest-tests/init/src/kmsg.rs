//! The kernel's log: saying something in it, and reading what it said since a moment.
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;

/// Longest record that `/dev/kmsg` hands out, bytes (`CONSOLE_EXT_LOG_MAX` in `kernel/printk/internal.h`).
const RECORD_MAX: usize = 8192;

/// Write one line into the kernel log. Best effort: it is where we complain when nothing else works.
pub(crate) fn say(text: &str) {
    if let Ok(mut log) = OpenOptions::new().write(true).open("/dev/kmsg") {
        let _ = log.write_all(format!("svadev-init: {text}\n").as_bytes());
    }
}

/// Reads the kernel log from a moment on.
pub(crate) struct Reader(Option<File>);

impl Reader {
    /// Everything logged after this call.
    pub(crate) fn from_now() -> Self {
        Self::open(SeekFrom::End(0))
    }

    /// Everything that is still in the log.
    pub(crate) fn from_start() -> Self {
        Self::open(SeekFrom::Start(0))
    }

    fn open(from: SeekFrom) -> Self {
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open("/dev/kmsg");
        Self(file.ok().and_then(|mut f| f.seek(from).ok().map(|_| f)))
    }

    /// The texts of the records that have not been read yet.
    pub(crate) fn lines(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        let Some(file) = &mut self.0 else { return lines };
        let mut record = [0; RECORD_MAX];
        loop {
            match file.read(&mut record) {
                Ok(0) => return lines,
                Ok(n) => lines.extend(text_of(&String::from_utf8_lossy(&record[..n]))),
                // The ring went round: the next read starts at the oldest record that is left.
                Err(e) if e.raw_os_error() == Some(libc::EPIPE) => {}
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return lines,
            }
        }
    }
}

/// The text of one `/dev/kmsg` record (`Documentation/ABI/testing/dev-kmsg`): `prefix;text\n KEY=value\n…`.
fn text_of(record: &str) -> Option<String> {
    let (_, rest) = record.split_once(';')?;
    rest.lines().next().map(str::to_owned)
}

/// The last `count` lines, as one text for a message of one line.
pub(crate) fn tail(lines: &[String], count: usize) -> String {
    lines[lines.len().saturating_sub(count)..].join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_gives_its_text_without_prefix_and_keys() {
        let record = "4,567,8910,-;svadev: version magic '7.3.4' should be '7.3.5'\n SUBSYSTEM=pci\n DEVICE=+pci:x\n";
        assert_eq!(text_of(record).as_deref(), Some("svadev: version magic '7.3.4' should be '7.3.5'"));
        assert_eq!(text_of("no separator"), None);
    }

    #[test]
    fn a_tail_is_the_last_lines() {
        let lines: Vec<String> = ["a", "b", "c"].map(String::from).to_vec();
        assert_eq!(tail(&lines, 2), "b | c");
        assert_eq!(tail(&lines, 9), "a | b | c");
        assert_eq!(tail(&[], 9), "");
    }
}
