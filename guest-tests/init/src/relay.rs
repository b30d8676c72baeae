//! Relaying a program's output to the launcher line by line.
use std::io::{BufRead, BufReader, Read};
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context, Result};

use crate::control::Control;

/// Longest line that is kept, bytes; what follows in the same line is dropped.
const MAX_LINE: u64 = 16 * 1024;

/// How one line of output becomes a control line.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Form {
    /// A KTAP line, as it is.
    Ktap,
    /// Standard error of the KTAP program: a diagnostic.
    KtapDiagnostic,
    /// A JSON object, as it is.
    Data,
    /// Standard error of the JSON program: an event of its own.
    DataDiagnostic,
}

impl Form {
    fn send(self, control: &Control, line: &str) {
        match self {
            Self::Ktap => control.ktap(line),
            Self::KtapDiagnostic => control.ktap(&format!("# {line}")),
            Self::Data => control.data(line),
            Self::DataDiagnostic => {
                control.data(&serde_json::json!({ "event": "stderr", "text": line }).to_string());
            }
        }
    }
}

/// Relay until the stream ends.
///
/// # Errors
/// No thread can be started.
pub(crate) fn start(stream: impl Read + Send + 'static, form: Form, control: &Arc<Control>) -> Result<JoinHandle<()>> {
    let control = Arc::clone(control);
    let body = move || each_line(BufReader::new(stream), |line| form.send(&control, line));
    std::thread::Builder::new().name("relay".into()).spawn(body).context("start a relay thread")
}

/// Call `f` for each line that is not empty; a last line without end counts too.
fn each_line(mut stream: impl BufRead, mut f: impl FnMut(&str)) {
    let mut line = Vec::new();
    loop {
        line.clear();
        match stream.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let whole = line.last() == Some(&b'\n');
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end();
        if !text.is_empty() {
            f(text);
        }
        if !whole && stream.skip_until(b'\n').is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(bytes: &[u8]) -> Vec<String> {
        let mut out = Vec::new();
        each_line(bytes, |l| out.push(l.to_owned()));
        out
    }

    #[test]
    fn lines_are_split_and_trimmed_at_the_end_only() {
        assert_eq!(lines(b"a\n\n  b\r\nc"), ["a", "  b", "c"]);
        assert!(lines(b"").is_empty());
    }

    #[test]
    fn what_is_not_text_is_kept_visible() {
        assert_eq!(lines(b"x\xffy\n"), ["x\u{fffd}y"]);
    }

    #[test]
    fn a_long_line_is_cut_and_the_next_one_is_whole() {
        let mut bytes = vec![b'x'; 3 * usize::try_from(MAX_LINE).unwrap()];
        bytes.extend(b"\nnext\n");
        let got = lines(&bytes);
        assert_eq!(got.len(), 2);
        assert_eq!(got[0].len() as u64, MAX_LINE);
        assert_eq!(got[1], "next");
    }
}
