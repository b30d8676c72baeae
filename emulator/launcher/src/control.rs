//! Control lines from PID 1 of the guest (docs/design/0001-foundations.md, "The guest's channels").
//!
//! The guest is not trusted: a line has a limit, and one that is not understood is reported and otherwise ignored.

/// Longest line that is kept, bytes; a longer one is cut.
pub const MAX_LINE: usize = 64 << 10;

/// One control line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// PID 1 runs; the kernel's release.
    Hello(String),
    /// The program's serial port is open: what is sent there from now on arrives.
    Ready,
    /// PID 1 still runs.
    Alive,
    /// One line of KTAP, its indentation kept.
    Ktap(String),
    /// One JSON object.
    Data(serde_json::Value),
    /// The guest's own set-up failed.
    Fatal(String),
    /// The job's exit status; the guest powers off now.
    Exit(u8),
    /// Something else.
    Unknown(String),
}

impl Message {
    /// From a line without its end.
    pub fn parse(line: &str) -> Self {
        let line = line.trim_end_matches('\r');
        let unknown = || Self::Unknown(line.to_owned());
        let Some(rest) = line.strip_prefix("svadev:") else { return unknown() };
        let (word, text) = rest.split_once(' ').unwrap_or((rest, ""));
        match word {
            "hello" => Self::Hello(text.to_owned()),
            "ready" if text.is_empty() => Self::Ready,
            "alive" if text.is_empty() => Self::Alive,
            "ktap" => Self::Ktap(text.to_owned()),
            "data" => match serde_json::from_str(text) {
                Ok(value @ serde_json::Value::Object(_)) => Self::Data(value),
                _ => unknown(),
            },
            "fatal" => Self::Fatal(text.to_owned()),
            "exit" => text.parse().map_or_else(|_| unknown(), Self::Exit),
            _ => unknown(),
        }
    }
}

/// Cuts a byte stream into lines of limited length. Invalid UTF-8 and control characters become U+FFFD.
#[derive(Debug, Default)]
pub struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    /// Takes bytes and gives every line that they complete, without `\n` and a `\r` before it.
    pub fn push(&mut self, mut bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        while let Some(end) = bytes.iter().position(|&byte| byte == b'\n') {
            self.keep(&bytes[..end]);
            lines.extend(self.take());
            bytes = &bytes[end + 1..];
        }
        self.keep(bytes);
        lines
    }

    /// What came after the last `\n`, when the stream ends.
    pub fn finish(&mut self) -> Option<String> {
        if self.partial.is_empty() { None } else { self.take() }
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = MAX_LINE - self.partial.len();
        self.partial.extend(&bytes[..bytes.len().min(room)]);
    }

    fn take(&mut self) -> Option<String> {
        let line = std::mem::take(&mut self.partial);
        let line = line.strip_suffix(b"\r").unwrap_or(&line);
        Some(without_control(&String::from_utf8_lossy(line)))
    }
}

/// The text with U+FFFD in place of control characters but tabs: a terminal shows what is left and does nothing else.
fn without_control(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}

/// The guest's text as one may print it: no control characters, which could move the terminal's cursor or retitle its
/// window, and no `::` at the start, which is a command to some CI runners.
pub fn printable(text: &str) -> String {
    let clean = without_control(text);
    match clean.trim_start().strip_prefix("::") {
        Some(rest) => format!(": :{rest}"),
        None => clean,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_understood() {
        assert_eq!(Message::parse("svadev:hello 7.3.4"), Message::Hello("7.3.4".into()));
        assert_eq!(Message::parse("svadev:alive\r"), Message::Alive);
        assert_eq!(Message::parse("svadev:ready"), Message::Ready);
        assert_eq!(Message::parse("svadev:ktap     ok 1 a"), Message::Ktap("    ok 1 a".into()));
        assert_eq!(Message::parse("svadev:data {\"a\":1}"), Message::Data(serde_json::json!({"a": 1})));
        assert_eq!(Message::parse("svadev:fatal no module"), Message::Fatal("no module".into()));
        assert_eq!(Message::parse("svadev:exit 255"), Message::Exit(255));
    }

    #[test]
    fn what_a_guest_may_send_instead_is_unknown() {
        for line in [
            "",
            "hello",
            "svadev:",
            "svadev:exit 256",
            "svadev:exit",
            "svadev:exit -1",
            "svadev:data [1]",
            "svadev:data {",
            "svadev:alive x",
        ] {
            assert_eq!(Message::parse(line), Message::Unknown(line.into()));
        }
    }

    #[test]
    fn lines_come_whole_however_the_bytes_are_cut() {
        let mut lines = Lines::default();
        assert!(lines.push(b"ab").is_empty());
        assert_eq!(lines.push(b"c\r\nd\n\ne"), ["abc", "d", ""]);
        assert_eq!(lines.finish().as_deref(), Some("e"));
        assert_eq!(lines.finish(), None);
    }

    #[test]
    fn escape_sequences_and_commands_to_ci_runners_are_shown_and_not_obeyed() {
        let lines = Lines::default().push(b"svadev:hello \x1b]0;title\x07\tx\x9b2J\n");
        assert!(!lines[0].contains(|c: char| c.is_control() && c != '\t'), "{lines:?}");
        assert_eq!(printable("\x1b[2J  ok"), "\u{fffd}[2J  ok");
        assert_eq!(printable("  ::error::x"), ": :error::x");
        assert_eq!(printable("a ::b"), "a ::b");
    }

    #[test]
    fn an_endless_line_is_cut() {
        let mut lines = Lines::default();
        for _ in 0..4 {
            assert!(lines.push(&vec![b'x'; MAX_LINE / 2]).is_empty());
        }
        let got = lines.push(b"\nnext\n");
        assert_eq!((got[0].len(), got[1].as_str()), (MAX_LINE, "next"));
    }
}
