//! The transport without a socket: a client in the same thread, for tests and simulations. Nothing blocks, and nothing
//! happens unless [`Client::pump`] is called, so a run depends on its inputs alone.
use std::collections::VecDeque;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use nix::errno::Errno;
use svadev_spec::vfio_user::{self as spec, Header, Version, command};
use zerocopy::{FromBytes, IntoBytes};

use crate::device::Device;
use crate::input::ProtocolError;
use crate::outbox::Transmit;
use crate::server::{Progress, Server};

/// The client's end of an in-memory connection.
pub struct Client {
    stream: Arc<Mutex<Stream>>,
    /// Sent, and not yet taken by the server.
    outgoing: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    next_id: u16,
}

/// A message as the client receives it.
#[derive(Debug)]
pub struct Message {
    /// The header.
    pub header: Header,
    /// All that follows it.
    pub payload: Vec<u8>,
    /// Descriptors that came with it.
    pub fds: Vec<OwnedFd>,
}

impl Message {
    /// The payload of a reply, or the errno it reports.
    pub fn result(&self) -> Result<&[u8], Errno> {
        if self.header.flags & spec::FLAG_ERROR == 0 {
            return Ok(&self.payload);
        }
        Err(i32::try_from(self.header.error).map_or(Errno::UnknownErrno, Errno::from_raw))
    }
}

/// What the server has sent and the client has not received.
struct Stream {
    bytes: VecDeque<u8>,
    /// In the order of the messages they came with, each at the position of its first byte.
    fds: VecDeque<(u64, Vec<OwnedFd>)>,
    /// Bytes that were received.
    position: u64,
    capacity: usize,
    closed: bool,
}

struct MemoryTransmit(Arc<Mutex<Stream>>);

impl Client {
    /// Connect to `server`, whose replies wait for us up to `capacity` bytes, as in a socket's buffer.
    pub fn connect(server: &mut Server, capacity: usize) -> Self {
        let stream = Stream { bytes: VecDeque::new(), fds: VecDeque::new(), position: 0, capacity, closed: false };
        let stream = Arc::new(Mutex::new(stream));
        server.connect(Some(Box::new(MemoryTransmit(Arc::clone(&stream)))), None);
        Self { stream, outgoing: VecDeque::new(), next_id: 0 }
    }

    /// Send a command. Returns its message ID.
    pub fn send(&mut self, command: u16, payload: &[u8], fds: Vec<OwnedFd>) -> u16 {
        self.send_flags(command, 0, payload, fds)
    }

    /// Send a command that wants no reply.
    pub fn post(&mut self, command: u16, payload: &[u8], fds: Vec<OwnedFd>) {
        self.send_flags(command, spec::FLAG_NO_REPLY, payload, fds);
    }

    /// Reply to a command of the server's.
    pub fn reply(&mut self, to: &Header, result: Result<&[u8], Errno>) {
        let (flags, error, payload) = match result {
            Ok(payload) => (spec::TYPE_REPLY, 0, payload),
            Err(errno) => (spec::TYPE_REPLY | spec::FLAG_ERROR, errno as i32 as u32, &[][..]),
        };
        let header = Header { message_size: message_size(payload), flags, error, ..*to };
        self.send_bytes([header.as_bytes(), payload].concat(), Vec::new());
    }

    /// Send any bytes at all, in one piece.
    pub fn send_bytes(&mut self, bytes: Vec<u8>, fds: Vec<OwnedFd>) {
        self.outgoing.push_back((bytes, fds));
    }

    fn send_flags(&mut self, command: u16, flags: u32, payload: &[u8], fds: Vec<OwnedFd>) -> u16 {
        let message_id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        let header = Header { message_id, command, message_size: message_size(payload), flags, error: 0 };
        self.send_bytes([header.as_bytes(), payload].concat(), fds);
        message_id
    }

    /// Let the server handle what was sent, until that is done or it is congested. Errors: it wants the connection ended.
    pub fn pump(&mut self, server: &mut Server, device: &mut dyn Device) -> Result<Progress, ProtocolError> {
        loop {
            server.flush();
            match server.poll(device)? {
                Progress::Handled => {}
                Progress::Congested => return Ok(Progress::Congested),
                Progress::NeedInput => {
                    let Some((bytes, fds)) = self.outgoing.front_mut() else { return Ok(Progress::NeedInput) };
                    let space = server.space();
                    let n = space.len().min(bytes.len());
                    space[..n].copy_from_slice(&bytes[..n]);
                    let fds = std::mem::take(fds);
                    bytes.drain(..n);
                    if bytes.is_empty() {
                        self.outgoing.pop_front();
                    }
                    server.filled(n, fds)?;
                }
            }
        }
    }

    /// Let `bytes` more of the server's messages wait for us.
    pub fn grow_room(&mut self, bytes: usize) {
        self.stream.lock().expect("nothing panics while it holds the stream").capacity += bytes;
    }

    /// The next whole message from the server.
    pub fn receive(&mut self) -> Option<Message> {
        let mut stream = self.stream.lock().expect("nothing panics while it holds the stream");
        let fixed: Vec<u8> = stream.bytes.iter().take(size_of::<Header>()).copied().collect();
        let header = Header::read_from_bytes(&fixed).ok()?;
        let size = header.message_size as usize;
        if stream.bytes.len() < size {
            return None;
        }
        let payload = stream.bytes.drain(..size).skip(size_of::<Header>()).collect();
        let start = stream.position;
        stream.position += size as u64;
        let has_fds = stream.fds.front().is_some_and(|(position, _)| *position == start);
        let fds = if has_fds { stream.fds.pop_front().map(|(_, fds)| fds) } else { None }.unwrap_or_default();
        Some(Message { header, payload, fds })
    }

    /// Send a command and return its reply. Messages that arrive before it are dropped: [`None`] when it does not come.
    pub fn call(
        &mut self,
        server: &mut Server,
        device: &mut dyn Device,
        command: u16,
        payload: &[u8],
        fds: Vec<OwnedFd>,
    ) -> Option<Message> {
        let id = self.send(command, payload, fds);
        self.pump(server, device).ok()?;
        loop {
            let message = self.receive()?;
            if message.header.message_id == id && message.header.flags & spec::TYPE_MASK == spec::TYPE_REPLY {
                return Some(message);
            }
        }
    }

    /// Agree on a version, proposing `json` (without its NUL), and return the reply.
    pub fn negotiate(&mut self, server: &mut Server, device: &mut dyn Device, json: &str) -> Option<Message> {
        let version = Version { major: spec::VERSION_MAJOR, minor: spec::VERSION_MINOR };
        let payload = [version.as_bytes(), json.as_bytes(), &[0]].concat();
        self.call(server, device, command::VERSION, &payload, Vec::new())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Ok(mut stream) = self.stream.lock() {
            stream.closed = true;
        }
    }
}

impl Transmit for MemoryTransmit {
    fn send(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
        let mut stream = self.0.lock().expect("nothing panics while it holds the stream");
        if stream.closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let n = bytes.len().min(stream.capacity.saturating_sub(stream.bytes.len()));
        if n == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if !fds.is_empty() {
            let fds = fds.iter().map(BorrowedFd::try_clone_to_owned).collect::<io::Result<Vec<OwnedFd>>>()?;
            let position = stream.position + stream.bytes.len() as u64;
            stream.fds.push_back((position, fds));
        }
        stream.bytes.extend(&bytes[..n]);
        Ok(n)
    }
}

fn message_size(payload: &[u8]) -> u32 {
    u32::try_from(size_of::<Header>() + payload.len()).expect("a client's message is short")
}
