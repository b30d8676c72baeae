//! A vfio-user server: how a VMM sees a PCI function that lives in another process.
//!
//! It knows the protocol, its messages and its limits. It must not know what a function does, nor guest memory: a map's
//! file descriptor goes to the [`Device`]. Only [`unix`] and [`client`] have sockets and wait; the rest has no I/O and
//! no clock.
//!
//! The path: [`unix::serve`] receives bytes and descriptors and gives them to [`Server::filled`]. [`Server::poll`]
//! takes a whole message, the session checks and decodes it, and the [`Device`] is called. The reply leaves through
//! [`Transmit`]. What the device answers later comes back through [`Sender::complete`].
//!
//! Where new things go: a command in `session/`, with its layout in `svadev-spec`; a transport beside [`unix`]; what a
//! client needs in [`client`].
//!
//! # Parts
//! - [`Device`]: what a PCI function implements.
//! - [`Server`]: the protocol as a state machine. Bytes and descriptors in, calls of a [`Device`] and bytes and
//!   descriptors out; no socket, thread or clock.
//! - [`Sender`]: what other threads hold, to answer later ([`ReplyToken`]) and to send DMA_READ and DMA_WRITE.
//! - [`unix`]: the transport over a unix socket, and the loop of the thread that serves one.
//! - [`client`]: the other side, over a unix socket or in the server's own thread, for tests and benchmarks.
//!
//! # What it does not implement
//! Migration (DEVICE_FEATURE, MIG_DATA_*), dirty tracking, ioeventfd and ioregionfd sub-regions, the twin socket.
//! Clients get an errno, or an empty list, and do without.
//!
//! # Key constants
//! [`Limits`]: data of one message 1 MiB, 16 descriptors, 65,535 mappings. Replies wait in a queue of 4 MiB at most,
//! beyond which no command is read. 1024 server-sent requests may be unanswered.
//!
//! Source: vfio-user Protocol Specification 0.9.2; see [`svadev_spec::vfio_user`].
pub mod client;
mod device;
mod input;
mod limits;
mod outbox;
mod sender;
mod server;
mod session;
pub mod unix;

pub use device::{
    Action, Data, Device, DeviceInfo, DmaMap, DmaUnmap, IrqInfo, RegionInfo, RegionMmap, ResetReply, SetIrqs,
    UnmapReply,
};
pub use input::ProtocolError;
pub use limits::Limits;
pub use nix::errno::Errno;
pub use outbox::{Outgoing, Transmit};
pub use sender::{Counters, ReplyToken, SendError, Sender};
pub use server::{Progress, Server};
pub use svadev_spec::vfio_user::SparseArea;

#[cfg(test)]
mod tests;
