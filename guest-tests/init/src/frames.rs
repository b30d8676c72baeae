//! Input in frames: on a serial port, which cannot say where input ends.
//!
//! A frame is a length, two bytes, the high one first, and so many bytes of input. Length 0 is the end.
use std::io::{Read, Write};
use std::sync::mpsc::{Receiver, channel};

/// Take frames from `port` and put what they hold into `pipe`, in threads of their own, until the end or until nobody reads.
///
/// What the program does not read yet waits in memory: the kernel throws away what nobody takes from a port.
///
/// # Errors
/// No thread.
pub(crate) fn start(port: impl Read + Send + 'static, pipe: impl Write + Send + 'static) -> std::io::Result<()> {
    let (sender, receiver) = channel();
    let take = move || take(port, |bytes| drop(sender.send(bytes)));
    std::thread::Builder::new().name("frames".into()).spawn(take)?;
    std::thread::Builder::new().name("input".into()).spawn(move || put(&receiver, pipe))?;
    Ok(())
}

/// Read frames up to the end, or until the port fails, and hand on what they hold.
fn take(mut port: impl Read, mut each: impl FnMut(Vec<u8>)) {
    let mut length = [0; 2];
    while port.read_exact(&mut length).is_ok() {
        let length = u16::from_be_bytes(length);
        let mut bytes = vec![0; length.into()];
        if length == 0 || port.read_exact(&mut bytes).is_err() {
            return;
        }
        each(bytes);
    }
}

/// Write until there is no more, or until the program has closed its input: what is left is nobody's then.
fn put(chunks: &Receiver<Vec<u8>>, mut pipe: impl Write) {
    for bytes in chunks {
        if pipe.write_all(&bytes).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(port: &[u8]) -> Vec<u8> {
        let mut all = Vec::new();
        take(port, |bytes| all.extend(bytes));
        all
    }

    #[test]
    fn frames_hold_any_bytes_and_the_empty_one_ends() {
        assert_eq!(taken(&[0, 3, 0, 4, 255, 0, 1, 7, 0, 0, 0, 1, 9]), [0, 4, 255, 7]);
        assert!(taken(&[0, 0]).is_empty());
    }

    #[test]
    fn a_port_that_fails_ends_input() {
        assert!(taken(&[]).is_empty());
        assert_eq!(taken(&[0, 1, 5, 0]), [5]);
        assert_eq!(taken(&[0, 1, 5, 1, 0, 6]), [5], "half a frame is none");
    }

    #[test]
    fn a_long_frame_is_one() {
        let mut port = vec![255, 255];
        port.extend(std::iter::repeat_n(8, 65535));
        assert_eq!(taken(&port).len(), 65535);
    }

    #[test]
    fn the_pipe_closes_at_the_end() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        start(&[0, 2, b'h', b'i', 0, 0][..], writer).unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hi");
    }
}
