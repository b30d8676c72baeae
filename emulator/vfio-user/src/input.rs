//! The receive half: bytes and descriptors in, whole messages out.
//!
//! The buffer grows with the bytes that came, never with the size that a header claims.
use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::OwnedFd;

use svadev_spec::vfio_user::Header;
use zerocopy::FromBytes;

/// Size of the buffer until a longer message needs more, bytes.
const INITIAL_SIZE: usize = 64 << 10;
/// Most descriptors that wait for the rest of their message. The kernel passes at most 253 (`SCM_MAX_FD`) at a time.
const MAX_HELD_FDS: usize = 256;

/// Why a connection cannot go on: where the next message begins is no longer known, or descriptors were lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// A header claims less than its own size.
    #[error("message size {0} is less than the size of a header")]
    ShortMessage(u32),
    /// A header claims more than was negotiated.
    #[error("message size {0} exceeds the limit of {1} bytes")]
    LongMessage(u32, usize),
    /// Neither command nor reply.
    #[error("message type {0} is neither a command nor a reply")]
    MessageType(u32),
    /// More descriptors than any command takes came with one message.
    #[error("too many file descriptors in one message")]
    TooManyFds,
    /// Descriptors that came with a message could not be taken in: this process has too many open.
    #[error("file descriptors were lost on receipt")]
    LostFds,
    /// The client speaks another major version, and the connection must be closed (*vfio-user* "VFIO_USER_VERSION").
    #[error("protocol major version {0} is not supported")]
    Version(u16),
}

/// A whole message: its header, and where in the buffer its payload is.
pub(crate) struct Frame {
    pub(crate) header: Header,
    pub(crate) payload: Range<usize>,
    pub(crate) fds: Vec<OwnedFd>,
}

#[derive(Default)]
pub(crate) struct Input {
    /// `buf[start..end]` was received and not yet handled.
    buf: Vec<u8>,
    start: usize,
    end: usize,
    /// Bytes of this connection before `buf[0]`.
    base: u64,
    /// Descriptors, with the position in the stream of the last byte they came with. On a unix socket a receive ends
    /// with the bytes that carried descriptors, so that byte belongs to their message.
    fds: VecDeque<(u64, Vec<OwnedFd>)>,
}

impl Input {
    /// Room for bytes to receive, never empty. The caller has taken every whole message out before.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.buf.copy_within(self.start..self.end, 0);
            self.base += self.start as u64;
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == self.buf.len() {
            // A whole message would have been taken out, so its length, which is bounded, bounds this too.
            self.buf.resize((self.buf.len() * 2).max(INITIAL_SIZE), 0);
        }
        &mut self.buf[self.end..]
    }

    /// The first `n` bytes of [`Input::space`] were received, with `fds`.
    pub(crate) fn filled(&mut self, n: usize, fds: Vec<OwnedFd>) -> Result<(), ProtocolError> {
        assert!(n <= self.buf.len() - self.end, "no more is received than there is space for");
        self.end += n;
        if fds.is_empty() || n == 0 {
            return Ok(());
        }
        if fds.len() + self.fds.iter().map(|(_, f)| f.len()).sum::<usize>() > MAX_HELD_FDS {
            return Err(ProtocolError::TooManyFds);
        }
        self.fds.push_back((self.base + self.end as u64 - 1, fds));
        Ok(())
    }

    /// The next message, if all of it is there. `max_size` bounds it, header included, bytes.
    pub(crate) fn next(&mut self, max_size: usize) -> Result<Option<Frame>, ProtocolError> {
        let Ok((header, _)) = Header::read_from_prefix(&self.buf[self.start..self.end]) else { return Ok(None) };
        let size = header.message_size as usize;
        if size < size_of::<Header>() {
            return Err(ProtocolError::ShortMessage(header.message_size));
        }
        if size > max_size {
            return Err(ProtocolError::LongMessage(header.message_size, max_size));
        }
        if self.end - self.start < size {
            return Ok(None);
        }
        let payload = self.start + size_of::<Header>()..self.start + size;
        self.start += size;
        Ok(Some(Frame { header, payload, fds: self.take_fds() }))
    }

    pub(crate) fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.buf[range]
    }

    /// Descriptors of the message that ends at `self.start`.
    fn take_fds(&mut self) -> Vec<OwnedFd> {
        let end = self.base + self.start as u64;
        let mut taken = Vec::new();
        while self.fds.front().is_some_and(|(position, _)| *position < end) {
            taken.extend(self.fds.pop_front().expect("the front was just looked at").1);
        }
        taken
    }
}
