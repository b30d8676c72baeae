//! [`Server`]: the protocol as a state machine over bytes and descriptors.
use std::os::fd::OwnedFd;
use std::sync::Arc;

use svadev_spec::vfio_user as spec;

use crate::device::Device;
use crate::input::{Input, ProtocolError};
use crate::limits::Limits;
use crate::outbox::{Outgoing, Transmit};
use crate::sender::{Sender, Shared};
use crate::session::Session;

/// How far [`Server::poll`] came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// One message was handled; there may be more.
    Handled,
    /// No whole message is there.
    NeedInput,
    /// The client does not take its replies, or the device owes too many: nothing is handled until that changes.
    Congested,
}

/// The server's side of the protocol, for one device and one client at a time. Does no I/O: what carries a connection
/// puts received bytes in ([`Server::space`], [`Server::filled`]) and calls [`Server::poll`]; replies leave through the
/// [`Transmit`] given to [`Server::connect`], or wait for [`Server::take_outgoing`].
pub struct Server {
    limits: Limits,
    input: Input,
    session: Session,
    shared: Arc<Shared>,
    connected: bool,
}

impl Server {
    /// A server without a client.
    pub fn new(limits: Limits) -> Self {
        assert!(limits.max_msg_fds > 0 && limits.max_data_xfer_size > 0, "a limit of 0 allows nothing");
        let shared = Arc::<Shared>::default();
        Self {
            limits,
            input: Input::default(),
            session: Session::new(limits, Arc::clone(&shared)),
            shared,
            connected: false,
        }
    }

    /// What other threads send through. The same one serves every connection.
    pub fn sender(&self) -> Sender {
        Sender::new(Arc::clone(&self.shared))
    }

    /// Begins a connection. `waker` is called, from any thread and with a lock held, when a message was queued because
    /// `transmit` was full, and when congestion ends; it may not block. Without `transmit` every message is queued.
    pub fn connect(&mut self, transmit: Option<Box<dyn Transmit>>, waker: Option<Box<dyn Fn() + Send>>) {
        assert!(!self.connected, "one client at a time");
        self.connected = true;
        self.shared.open(transmit, waker);
    }

    /// Ends the connection: forget what was received, what was to be sent and what was owed, and tell the device.
    pub fn disconnect(&mut self, device: &mut dyn Device) {
        if !std::mem::take(&mut self.connected) {
            return;
        }
        self.input = Input::default();
        self.session = Session::new(self.limits, Arc::clone(&self.shared));
        self.shared.close();
        device.disconnected();
    }

    /// Where to put received bytes; never empty. [`Server::poll`] must have said [`Progress::NeedInput`] since the last
    /// time.
    pub fn space(&mut self) -> &mut [u8] {
        self.input.space()
    }

    /// The first `n` bytes of [`Server::space`] were received, with `fds`, in one receive.
    ///
    /// Errors: the connection must be ended.
    pub fn filled(&mut self, n: usize, fds: Vec<OwnedFd>) -> Result<(), ProtocolError> {
        self.input.filled(n, fds)
    }

    /// Handles one message, if there is one.
    ///
    /// Errors: the connection must be ended. Everything else that can be wrong with a message is answered.
    pub fn poll(&mut self, device: &mut dyn Device) -> Result<Progress, ProtocolError> {
        if self.shared.is_congested() {
            return Ok(Progress::Congested);
        }
        let Some(frame) = self.input.next(self.limits.max_message())? else { return Ok(Progress::NeedInput) };
        let payload = self.input.bytes(frame.payload);
        match frame.header.flags & spec::TYPE_MASK {
            spec::TYPE_COMMAND => self.session.command(device, &frame.header, payload, frame.fds)?,
            // Descriptors that came with a reply are closed: no reply has any.
            spec::TYPE_REPLY => self.shared.reply_received(&frame.header, payload),
            other => return Err(ProtocolError::MessageType(other)),
        }
        Ok(Progress::Handled)
    }

    /// Whether a version was agreed on.
    pub(crate) fn is_negotiated(&self) -> bool {
        self.session.is_negotiated()
    }

    /// Sends what was queued, as far as the transport takes it.
    pub fn flush(&mut self) {
        self.shared.flush();
    }

    /// Whether something is queued. If so, call [`Server::flush`] when the transport has room.
    pub fn has_queued(&self) -> bool {
        self.shared.has_queued()
    }

    /// Whether messages can still be sent. If not, end the connection.
    pub fn is_sending(&self) -> bool {
        self.shared.is_sending()
    }

    /// The oldest queued message, where there is no transport.
    pub fn take_outgoing(&mut self) -> Option<Outgoing> {
        self.shared.take()
    }
}
