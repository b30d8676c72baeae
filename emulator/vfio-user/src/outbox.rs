//! The send half: a bounded queue behind a transport that never blocks.
//!
//! Each message starts in a send of its own, since QEMU's client takes a header that arrives in two pieces for a broken
//! stream.
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Where messages go: the sending end of a connection.
pub trait Transmit: Send {
    /// Sends as much as fits without blocking and return how much that was. The descriptors go with the first byte.
    ///
    /// Errors: `WouldBlock` when nothing fits now; any other error ends the connection's send half.
    fn send(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize>;
}

/// A message, or what is left of one.
#[derive(Debug)]
pub struct Outgoing {
    /// Bytes still to send.
    pub bytes: Vec<u8>,
    /// Descriptors that go with the first of them.
    pub fds: Vec<OwnedFd>,
}

#[derive(Default)]
pub(crate) struct Outbox {
    /// `None`: everything stays in `queue`, for [`Outbox::take`].
    transmit: Option<Box<dyn Transmit>>,
    queue: VecDeque<Outgoing>,
    /// Bytes of the first queued message that were sent.
    sent: usize,
    queued_bytes: usize,
    connected: bool,
}

impl Outbox {
    pub(crate) fn open(&mut self, transmit: Option<Box<dyn Transmit>>) {
        *self = Self { transmit, connected: true, ..Self::default() };
    }

    pub(crate) fn close(&mut self) {
        *self = Self::default();
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.connected
    }

    pub(crate) fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// Sends or queue a message. True when it was queued behind a transport, which must then be flushed when it has
    /// room.
    pub(crate) fn send(&mut self, bytes: &[u8], fds: Vec<OwnedFd>) -> bool {
        if !self.connected {
            return false;
        }
        let mut sent = 0;
        if self.queue.is_empty() {
            match self.transmit_some(bytes, &fds) {
                Ok(n) => sent = n,
                Err(_) => return false,
            }
            if sent == bytes.len() {
                return false;
            }
        }
        // What a partial send took with it are the descriptors, so only the bytes are left.
        let fds = if sent == 0 { fds } else { Vec::new() };
        self.queued_bytes += bytes.len() - sent;
        self.queue.push_back(Outgoing { bytes: bytes[sent..].to_vec(), fds });
        self.transmit.is_some()
    }

    /// Sends what is queued, as far as it fits.
    pub(crate) fn flush(&mut self) {
        while let Some(first) = self.queue.pop_front() {
            let Ok(n) = self.transmit_some(&first.bytes[self.sent..], &first.fds) else { return };
            self.queued_bytes -= n;
            self.sent += n;
            if self.sent < first.bytes.len() {
                let fds = if self.sent == 0 { first.fds } else { Vec::new() };
                self.queue.push_front(Outgoing { bytes: first.bytes, fds });
                return;
            }
            self.sent = 0;
        }
    }

    /// Takes the oldest queued message, where there is no transport to do so.
    pub(crate) fn take(&mut self) -> Option<Outgoing> {
        let first = self.queue.pop_front()?;
        self.queued_bytes -= first.bytes.len();
        Some(first)
    }

    /// Bytes sent, 0 when nothing fits. An error closes the outbox.
    fn transmit_some(&mut self, bytes: &[u8], fds: &[OwnedFd]) -> io::Result<usize> {
        let Some(transmit) = &mut self.transmit else { return Ok(0) };
        let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        match transmit.send(bytes, &borrowed) {
            Ok(n) => {
                assert!(n <= bytes.len(), "a transport sends no more than it was given");
                Ok(n)
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(0),
            Err(e) => {
                // The receive half finds out too, and ends the connection with everything that hangs on it.
                tracing::debug!(error = %e, "vfio-user send failed");
                self.close();
                Err(e)
            }
        }
    }
}
