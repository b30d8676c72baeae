//! A client on a unix socket.
use std::cell::Cell;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use svadev_spec::vfio_user::{Header, IrqSetFlags, RegionAccess, RegionInfo, command, region};
use zerocopy::{FromBytes as _, FromZeros as _, IntoBytes as _};

use super::{Message, config, request};
use crate::unix::socket;

/// How long the client waits for the server, seconds.
const PATIENCE_S: u16 = 20;
/// Bytes of a REGION_READ request. The reply has the data in addition.
const READ_REQUEST: usize = 32;
const _: () = assert!(READ_REQUEST == size_of::<Header>() + size_of::<RegionAccess>());
/// Longest message that a server may send, bytes: more than any default limit of data, and fixed fields.
const MAX_MESSAGE: usize = 2 << 20;

/// What can go wrong with a command.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The socket failed, the server closed it, or no reply came in time.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The server answered with an errno.
    #[error("vfio-user command {command} was refused: {errno}")]
    Refused {
        /// The command.
        command: u16,
        /// The errno in the reply.
        errno: Errno,
    },
    /// The server sent something that is not a reply to the command, or a reply without what was asked for.
    #[error("unexpected answer to vfio-user command {command}")]
    Unexpected {
        /// The command.
        command: u16,
    },
}

/// A connection to a function's socket, used by one thread. Its calls block until the reply comes.
#[derive(Debug)]
pub struct SocketClient {
    stream: UnixStream,
    next_id: Cell<u16>,
}

impl SocketClient {
    /// Connects to the socket at a path. No version is agreed on yet.
    pub fn connect(path: &Path) -> io::Result<Self> {
        Self::over(UnixStream::connect(path)?)
    }

    /// Uses a stream that is connected to a server.
    pub fn over(stream: UnixStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(Duration::from_secs(PATIENCE_S.into())))?;
        Ok(Self { stream, next_id: Cell::new(0) })
    }

    /// The stream, to send and receive anything else.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Sends a command. Returns its message ID.
    pub fn send(&self, command: u16, payload: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<u16> {
        let message_id = self.take_id();
        let bytes = request::message(message_id, command, 0, payload);
        let mut sent = 0;
        while sent < bytes.len() {
            // Descriptors go with the first byte.
            match socket::send(&self.stream, &bytes[sent..], if sent == 0 { fds } else { &[] }) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait(PollFlags::POLLOUT)?,
                Err(error) => return Err(error),
            }
        }
        Ok(message_id)
    }

    /// Receives the next message. Errors: the server closed the connection or sends none in time.
    pub fn receive(&self) -> io::Result<Message> {
        let (mut header, mut fds) = (Header::new_zeroed(), Vec::new());
        self.fill(header.as_mut_bytes(), &mut fds)?;
        let size = (header.message_size as usize).checked_sub(size_of::<Header>());
        let size = size.filter(|&size| size <= MAX_MESSAGE).ok_or(io::ErrorKind::InvalidData)?;
        let mut payload = vec![0; size];
        self.fill(&mut payload, &mut fds)?;
        Ok(Message { header, payload, fds })
    }

    /// Sends a command and waits for its reply, which must be the next message.
    pub fn call(&self, command: u16, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Result<Message, ClientError> {
        let id = self.send(command, payload, fds)?;
        let reply = self.receive()?;
        if !reply.is_reply_to(id) || reply.header.command != command {
            return Err(ClientError::Unexpected { command });
        }
        match reply.result() {
            Ok(_) => Ok(reply),
            Err(errno) => Err(ClientError::Refused { command, errno }),
        }
    }

    /// Agrees on a version, proposing `json` (without its NUL).
    pub fn negotiate(&self, json: &str) -> Result<Message, ClientError> {
        self.call(command::VERSION, &request::version(json), &[])
    }

    /// Loads a register of 4 bytes with one system call to send and one to receive.
    pub fn read_register(&self, region: u32, offset: u64) -> Result<u32, ClientError> {
        let message_id = self.take_id();
        let header = Header { message_id, command: command::REGION_READ, message_size: 32, ..Header::default() };
        let mut bytes = [0; READ_REQUEST];
        bytes[..size_of::<Header>()].copy_from_slice(header.as_bytes());
        bytes[size_of::<Header>()..].copy_from_slice(request::region_read(region, offset, 4).as_bytes());
        (&self.stream).write_all(&bytes)?;
        let mut reply = [0; READ_REQUEST + 4];
        (&self.stream).read_exact(&mut reply)?;
        if reply[..2] != message_id.to_ne_bytes() {
            return Err(ClientError::Unexpected { command: command::REGION_READ });
        }
        let (_, value) = reply.split_at(READ_REQUEST);
        u32::read_from_bytes(value).map_err(|_| ClientError::Unexpected { command: command::REGION_READ })
    }

    /// Loads `N` bytes of a region.
    pub fn read<const N: usize>(&self, region: u32, offset: u64) -> Result<[u8; N], ClientError> {
        let command = command::REGION_READ;
        let count = u32::try_from(N).map_err(|_| ClientError::Unexpected { command })?;
        let reply = self.call(command, request::region_read(region, offset, count).as_bytes(), &[])?;
        let data = reply.payload.get(size_of::<RegionAccess>()..);
        data.and_then(|data| data.try_into().ok()).ok_or(ClientError::Unexpected { command })
    }

    /// Stores to a region.
    pub fn write(&self, region: u32, offset: u64, data: &[u8]) -> Result<(), ClientError> {
        self.call(command::REGION_WRITE, &request::region_write(region, offset, data), &[]).map(drop)
    }

    /// Maps `size` bytes of a file, from its beginning, at a guest-physical address.
    pub fn map(&self, address: u64, size: u64, file: BorrowedFd<'_>) -> Result<(), ClientError> {
        self.call(command::DMA_MAP, request::dma_map(address, size, 0).as_bytes(), &[file]).map(drop)
    }

    /// Connects an eventfd to one interrupt of a type.
    pub fn set_irq(&self, index: u32, start: u32, eventfd: BorrowedFd<'_>) -> Result<(), ClientError> {
        let set = request::irq_set(index, IrqSetFlags::DATA_EVENTFD | IrqSetFlags::ACTION_TRIGGER, start, 1);
        self.call(command::DEVICE_SET_IRQS, set.as_bytes(), &[eventfd]).map(drop)
    }

    /// The file behind a region that can be mapped.
    pub fn region_file(&self, index: u32) -> Result<OwnedFd, ClientError> {
        let command = command::DEVICE_GET_REGION_INFO;
        // Room for the description of the areas that can be mapped.
        let info = RegionInfo { argsz: 4096, index, ..RegionInfo::default() };
        let reply = self.call(command, info.as_bytes(), &[])?;
        reply.fds.into_iter().next_back().ok_or(ClientError::Unexpected { command })
    }

    /// Offset of an extended capability in configuration space (PCIe 6.0 §7.6.3); `None` if the function lacks it.
    pub fn extended_capability(&self, id: u16) -> Result<Option<u64>, ClientError> {
        config::extended_capability(id, |at| self.read(region::CONFIG, at))
    }

    fn take_id(&self) -> u16 {
        self.next_id.replace(self.next_id.get().wrapping_add(1))
    }

    /// Receives exactly `into.len()` bytes, and the descriptors that come with them.
    fn fill(&self, mut into: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<()> {
        while !into.is_empty() {
            match socket::receive(&self.stream, into) {
                Ok(received) if received.bytes == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(received) => {
                    fds.extend(received.fds);
                    into = &mut into[received.bytes..];
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait(PollFlags::POLLIN)?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn wait(&self, events: PollFlags) -> io::Result<()> {
        match poll(&mut [PollFd::new(self.stream.as_fd(), events)], PollTimeout::from(PATIENCE_S * 1000)) {
            Ok(0) => Err(io::ErrorKind::TimedOut.into()),
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}
