//! The user's terminal, and the standard streams of the guest's program.
#![allow(unsafe_code, reason = "one ioctl that has no safe wrapper")]
use std::{
    io::{IsTerminal as _, Read as _, Write as _},
    os::fd::{AsFd as _, AsRawFd as _},
};

use nix::sys::termios::{
    InputFlags, LocalFlags, OutputFlags, SetArg, SpecialCharacterIndices, Termios, cfmakeraw, tcgetattr, tcsetattr,
};
use tokio::sync::mpsc;

/// The key that begins a command to us, in raw mode: Ctrl-A.
const ESCAPE: u8 = 0x01;
/// End of input for a guest terminal that edits lines: Ctrl-D.
pub const END_OF_INPUT: u8 = 0x04;
/// Chunks that may wait in either direction.
const QUEUE: usize = 16;
/// What Ctrl-A h shows.
pub const HELP: &str = "Ctrl-A x  end the guest\nCtrl-A h  this help\nCtrl-A Ctrl-A  send Ctrl-A to the guest\n";

/// Our terminal in raw mode, until dropped: keys go to the guest as they are, Ctrl-C too.
#[derive(Debug)]
pub struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// Makes standard input's terminal raw; `None` if it is no terminal.
    pub fn enter() -> anyhow::Result<Option<Self>> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(stdin.as_fd())?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        // Output is still processed: our own lines and the kernel log's end in a bare `\n`.
        raw.output_flags = before.output_flags | OutputFlags::OPOST;
        raw.control_chars[SpecialCharacterIndices::VMIN as usize] = 1;
        debug_assert!(!raw.local_flags.contains(LocalFlags::ISIG) && !raw.input_flags.contains(InputFlags::ICRNL));
        tcsetattr(stdin.as_fd(), SetArg::TCSAFLUSH, &raw)?;
        Ok(Some(Self { before }))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // A terminal that has gone needs no restoring.
        let _ = tcsetattr(std::io::stdin().as_fd(), SetArg::TCSADRAIN, &self.before);
    }
}

nix::ioctl_read_bad!(
    /// Asks a terminal for its size (ioctl_tty(2)).
    terminal_size,
    libc::TIOCGWINSZ,
    libc::winsize
);

/// Lines and columns of the terminal on standard output, if it is one.
pub fn window_size() -> Option<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one `winsize` through a pointer to a live one.
    unsafe { terminal_size(std::io::stdout().as_fd().as_raw_fd(), &raw mut size) }.ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}

/// What the user typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// For the guest.
    Bytes(Vec<u8>),
    /// Standard input has ended.
    End,
    /// Ctrl-A x.
    Quit,
    /// Ctrl-A h.
    Help,
}

/// Finds Ctrl-A commands in what is typed.
#[derive(Debug, Default)]
struct Escapes {
    pending: bool,
}

impl Escapes {
    fn split(&mut self, bytes: &[u8]) -> Vec<Input> {
        let mut inputs = Vec::new();
        let mut plain = Vec::new();
        for &byte in bytes {
            if !std::mem::take(&mut self.pending) {
                match byte {
                    ESCAPE => self.pending = true,
                    _ => plain.push(byte),
                }
                continue;
            }
            let command = match byte {
                b'x' | b'X' => Input::Quit,
                b'h' | b'H' | b'?' => Input::Help,
                ESCAPE => {
                    plain.push(ESCAPE);
                    continue;
                }
                _ => {
                    plain.extend([ESCAPE, byte]);
                    continue;
                }
            };
            if !plain.is_empty() {
                inputs.push(Input::Bytes(std::mem::take(&mut plain)));
            }
            inputs.push(command);
        }
        if !plain.is_empty() {
            inputs.push(Input::Bytes(plain));
        }
        inputs
    }
}

/// Reads standard input in a thread of its own: it may be a file, which cannot be polled. The thread ends with the
/// process, or when nobody listens any more.
pub fn read_input(escapes: bool) -> mpsc::Receiver<Input> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let body = move || {
        let mut escape = Escapes::default();
        let mut stdin = std::io::stdin().lock();
        let mut buffer = [0; 4096];
        loop {
            let inputs = match stdin.read(&mut buffer) {
                Ok(0) | Err(_) => vec![Input::End],
                Ok(count) if escapes => escape.split(&buffer[..count]),
                Ok(count) => vec![Input::Bytes(buffer[..count].to_vec())],
            };
            let ended = inputs.last() == Some(&Input::End);
            for input in inputs {
                if sender.blocking_send(input).is_err() {
                    return;
                }
            }
            if ended {
                return;
            }
        }
    };
    std::thread::Builder::new().name("stdin".into()).spawn(body).expect("the system has room for one thread more");
    receiver
}

/// Writes standard output in a thread of its own: a reader that is slow must not keep us from hearing Ctrl-C.
#[derive(Debug)]
pub struct Output {
    sender: mpsc::Sender<Vec<u8>>,
    done: tokio::sync::oneshot::Receiver<()>,
}

impl Output {
    /// Starts the thread.
    pub fn start() -> Self {
        let (sender, mut receiver) = mpsc::channel::<Vec<u8>>(QUEUE);
        let (finished, done) = tokio::sync::oneshot::channel();
        let body = move || {
            // Locked for each write only: results and progress go to the same stream from other threads.
            let mut stdout = std::io::stdout();
            while let Some(bytes) = receiver.blocking_recv() {
                // A reader that has gone: the guest's program goes on, as it would with its terminal hung up.
                let _ = stdout.write_all(&bytes).and_then(|()| stdout.flush());
            }
            let _ = finished.send(());
        };
        std::thread::Builder::new().name("stdout".into()).spawn(body).expect("the system has room for one thread more");
        Self { sender, done }
    }

    /// Where bytes go.
    pub fn sender(&self) -> mpsc::Sender<Vec<u8>> {
        self.sender.clone()
    }

    /// Waits, for a limited time, until everything was written. Every other sender must be gone.
    pub async fn finish(self) {
        drop(self.sender);
        let _ = tokio::time::timeout(std::time::Duration::from_secs(5), self.done).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes() {
        let mut escapes = Escapes::default();
        assert_eq!(escapes.split(b"ab\x01"), [Input::Bytes(b"ab".to_vec())]);
        assert_eq!(escapes.split(b"xcd"), [Input::Quit, Input::Bytes(b"cd".to_vec())]);
        assert_eq!(escapes.split(b"\x01h\x01\x01\x01z"), [Input::Help, Input::Bytes(b"\x01\x01z".to_vec())]);
        assert_eq!(escapes.split(b"\x03"), [Input::Bytes(b"\x03".to_vec())], "Ctrl-C is the guest's");
    }
}
