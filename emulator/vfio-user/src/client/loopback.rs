//! A client in the server's own thread. Nothing blocks, and nothing happens unless [`LoopbackClient::pump`] is called,
//! so a run depends on its inputs alone.
use std::collections::VecDeque;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use nix::errno::Errno;
use svadev_spec::vfio_user::{self as spec, Header, command};
use zerocopy::{FromBytes, IntoBytes};

use super::{Message, request};
use crate::device::Device;
use crate::input::ProtocolError;
use crate::outbox::Transmit;
use crate::server::{Progress, Server};

/// The client's end of an in-memory connection.
pub struct LoopbackClient {
    stream: Arc<Mutex<Stream>>,
    /// Messages that were sent and that the server has not taken yet.
    outgoing: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    next_id: u16,
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

impl LoopbackClient {
    /// Connects to `server`. Up to `capacity` bytes of its messages wait for the client, as in a socket's buffer.
    pub fn connect(server: &mut Server, capacity: usize) -> Self {
        let stream = Stream { bytes: VecDeque::new(), fds: VecDeque::new(), position: 0, capacity, closed: false };
        let stream = Arc::new(Mutex::new(stream));
        server.connect(Some(Box::new(MemoryTransmit(Arc::clone(&stream)))), None);
        Self { stream, outgoing: VecDeque::new(), next_id: 0 }
    }

    /// Sends a command. Returns its message ID.
    pub fn send(&mut self, command: u16, payload: &[u8], fds: Vec<OwnedFd>) -> u16 {
        self.send_flags(command, 0, payload, fds)
    }

    /// Sends a command that wants no reply.
    pub fn post(&mut self, command: u16, payload: &[u8], fds: Vec<OwnedFd>) {
        self.send_flags(command, spec::FLAG_NO_REPLY, payload, fds);
    }

    /// Replies to a command of the server's.
    pub fn reply(&mut self, to: &Header, result: Result<&[u8], Errno>) {
        let (flags, error, payload) = match result {
            Ok(payload) => (spec::TYPE_REPLY, 0, payload),
            Err(errno) => (spec::TYPE_REPLY | spec::FLAG_ERROR, errno as i32 as u32, &[][..]),
        };
        let header = Header { message_size: request::message_size(payload), flags, error, ..*to };
        self.send_bytes([header.as_bytes(), payload].concat(), Vec::new());
    }

    /// Sends any bytes at all, in one piece.
    pub fn send_bytes(&mut self, bytes: Vec<u8>, fds: Vec<OwnedFd>) {
        self.outgoing.push_back((bytes, fds));
    }

    fn send_flags(&mut self, command: u16, flags: u32, payload: &[u8], fds: Vec<OwnedFd>) -> u16 {
        let message_id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        self.send_bytes(request::message(message_id, command, flags, payload), fds);
        message_id
    }

    /// Lets the server handle what was sent, until that is done or the server is congested. Errors: the connection must
    /// be ended.
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

    /// Lets `bytes` more of the server's messages wait.
    pub fn grow_room(&mut self, bytes: usize) {
        self.stream.lock().expect("nothing panics while it holds the stream").capacity += bytes;
    }

    /// Receives the next whole message from the server, if there is one.
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

    /// Sends a command and returns its reply, or [`None`] if it does not come. Messages that arrive before it are
    /// dropped.
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
            if message.is_reply_to(id) {
                return Some(message);
            }
        }
    }

    /// Agrees on a version, proposing `json` (without its NUL), and returns the reply.
    pub fn negotiate(&mut self, server: &mut Server, device: &mut dyn Device, json: &str) -> Option<Message> {
        self.call(server, device, command::VERSION, &request::version(json), Vec::new())
    }
}

impl Drop for LoopbackClient {
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
