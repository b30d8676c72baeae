//! Commands of one connection: checked, decoded, handed to the device, answered.
mod access;
mod dma;
mod info;
mod irqs;
mod version;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::errno::Errno;
use svadev_spec::vfio_user::{self as spec, Header, command};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::device::Device;
use crate::input::ProtocolError;
use crate::limits::Limits;
use crate::sender::{self, Command, Shared, count};

/// State that is lost when a connection ends: there is one for each connection.
pub(crate) struct Session {
    limits: Limits,
    shared: Arc<Shared>,
    /// A version was agreed on.
    negotiated: bool,
    /// DMA mappings, address → size: what a client may unmap, and may not map again.
    maps: BTreeMap<u64, u64>,
    /// The reply being made, header first. Kept for its allocation.
    reply: Vec<u8>,
}

/// What a handler puts in [`Session::reply`] is sent with these descriptors; an errno is sent alone.
type Reply = Result<Vec<OwnedFd>, Errno>;

impl Session {
    pub(crate) fn new(limits: Limits, shared: Arc<Shared>) -> Self {
        Self { limits, shared, negotiated: false, maps: BTreeMap::new(), reply: Vec::new() }
    }

    /// Whether VERSION has come.
    pub(crate) fn is_negotiated(&self) -> bool {
        self.negotiated
    }

    /// Handles one command. Errors end the connection.
    pub(crate) fn command(
        &mut self,
        device: &mut dyn Device,
        header: &Header,
        payload: &[u8],
        fds: Vec<OwnedFd>,
    ) -> Result<(), ProtocolError> {
        count(&self.shared.counters.commands);
        self.reply.clear();
        self.reply.resize(size_of::<Header>(), 0);
        let reply = match header.command {
            command::VERSION => self.version(payload)?,
            // "the initial client message" is VERSION (*vfio-user* "VFIO_USER_VERSION").
            _ if !self.negotiated => Err(Errno::EINVAL),
            // rust-vmm brings all eventfds in one message, whatever was negotiated: the type's count bounds them.
            command::DEVICE_SET_IRQS => self.immediate(device, header.command, payload, fds),
            _ if fds.len() > self.limits.max_msg_fds as usize => Err(Errno::EINVAL),
            command::DMA_MAP | command::DMA_UNMAP | command::DEVICE_RESET => {
                self.ordered(device, header, payload, fds);
                return Ok(());
            }
            _ => self.immediate(device, header.command, payload, fds),
        };
        self.send(header, reply);
        Ok(())
    }

    /// Commands that are answered on the spot.
    fn immediate(&mut self, device: &mut dyn Device, command: u16, payload: &[u8], fds: Vec<OwnedFd>) -> Reply {
        match command {
            command::DEVICE_GET_INFO => self.device_info(device, payload),
            command::DEVICE_GET_REGION_INFO => self.region_info(device, payload),
            command::DEVICE_GET_REGION_IO_FDS => self.region_io_fds(device, payload),
            command::DEVICE_GET_IRQ_INFO => self.irq_info(device, payload),
            command::DEVICE_SET_IRQS => irqs::set(device, payload, fds).map(|()| Vec::new()),
            command::REGION_READ => self.region_read(device, payload),
            command::REGION_WRITE => self.region_write(device, payload),
            command::REGION_WRITE_MULTI => self.region_write_multi(device, payload),
            // Known, and only sent by a server.
            command::DMA_READ | command::DMA_WRITE => Err(Errno::EINVAL),
            // Migration and dirty tracking are not supported.
            command::DIRTY_PAGES | command::DEVICE_FEATURE | command::MIG_DATA_READ | command::MIG_DATA_WRITE => {
                Err(Errno::EOPNOTSUPP)
            }
            _ => Err(Errno::ENOSYS),
        }
    }

    /// Commands whose replies keep the commands' order, since the device may answer any of them later.
    fn ordered(&mut self, device: &mut dyn Device, header: &Header, payload: &[u8], fds: Vec<OwnedFd>) {
        let command = Command { header: *header, unmap: None };
        match header.command {
            command::DMA_MAP => {
                let result = self.dma_map(device, payload, fds);
                self.shared.reply_in_order(command, result.map(|()| 0));
            }
            command::DMA_UNMAP => self.dma_unmap(device, command, payload),
            _ => self.device_reset(device, command),
        }
    }

    /// Sends what a handler made of a command. An error to a posted command is counted and never sent.
    fn send(&mut self, header: &Header, reply: Reply) {
        let counters = &self.shared.counters;
        let posted = header.flags & spec::FLAG_NO_REPLY != 0;
        match reply {
            Ok(_) if posted => {}
            Err(_) if posted => count(&counters.posted_errors),
            Ok(fds) => {
                let size = u32::try_from(self.reply.len()).expect("a reply's data is bounded by max_data_xfer_size");
                let reply_header = sender::reply_header(header, size);
                self.reply[..size_of::<Header>()].copy_from_slice(reply_header.as_bytes());
                self.shared.send_reply(&self.reply, fds);
            }
            Err(errno) => {
                count(&counters.error_replies);
                tracing::debug!(command = header.command, %errno, "vfio-user command failed");
                self.shared.send_reply(sender::error_reply(header, errno).as_bytes(), Vec::new());
            }
        }
    }

    fn put(&mut self, value: &(impl IntoBytes + Immutable)) {
        self.reply.extend_from_slice(value.as_bytes());
    }
}

/// The fixed part of a payload, and what follows it. A payload that is too short is invalid.
fn fixed<T: FromBytes>(payload: &[u8]) -> Result<(T, &[u8]), Errno> {
    T::read_from_prefix(payload).map_err(|_| Errno::EINVAL)
}

/// The fixed part of a payload whose reply has the same form: `argsz` must have room for it (*vfio-user* "Message
/// sizes").
fn fixed_with_room<T: FromBytes>(payload: &[u8], argsz: impl FnOnce(&T) -> u32) -> Result<T, Errno> {
    let (value, _) = fixed::<T>(payload)?;
    if (argsz(&value) as usize) < size_of::<T>() {
        return Err(Errno::EINVAL);
    }
    Ok(value)
}
