//! A vfio-user client, for tests, benchmarks and simulations. It does as much as a VMM needs to bring a function up.
//!
//! [`LoopbackClient`] runs in the server's own thread, without a socket. [`SocketClient`] waits on a unix socket for
//! each reply, as QEMU's threads do. Both build their messages with [`request`] and receive [`Message`]s.
pub mod config;
mod loopback;
pub mod request;
mod socket;

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use svadev_spec::vfio_user::{self as spec, Header};

pub use loopback::LoopbackClient;
pub use socket::{ClientError, SocketClient};

/// A message as a client receives it.
#[derive(Debug)]
pub struct Message {
    /// The header.
    pub header: Header,
    /// All that follows the header.
    pub payload: Vec<u8>,
    /// Descriptors that came with the message.
    pub fds: Vec<OwnedFd>,
}

impl Message {
    /// Whether this is the reply to a command that was sent with this message ID.
    pub fn is_reply_to(&self, message_id: u16) -> bool {
        self.header.message_id == message_id && self.header.flags & spec::TYPE_MASK == spec::TYPE_REPLY
    }

    /// The payload of a reply, or the errno it reports.
    pub fn result(&self) -> Result<&[u8], Errno> {
        if self.header.flags & spec::FLAG_ERROR == 0 {
            return Ok(&self.payload);
        }
        Err(i32::try_from(self.header.error).map_or(Errno::UnknownErrno, Errno::from_raw))
    }
}
