//! What other threads hold: deferred replies and server-sent requests.
//!
//! One mutex guards the send half of the connection and all that is answered through it. It is held for one
//! non-blocking send at most, and never while a device or a completion is called.
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use nix::errno::Errno;
use svadev_spec::vfio_user::{self as spec, DmaAccess, Header, command};
use zerocopy::{FromBytes, IntoBytes};

use crate::outbox::{Outbox, Outgoing, Transmit};

/// Bytes queued behind a full socket at which nothing more is taken in: no command is read, no request accepted.
pub(crate) const MAX_QUEUED_BYTES: usize = 4 << 20;
/// Replies owed or held back at which no further command is read.
pub(crate) const MAX_OWED_REPLIES: usize = 1024;
/// Most server-sent requests whose reply is waited for. Beyond it, the oldest DMA_WRITE is no longer waited for.
const MAX_REQUESTS: usize = 1024;

/// Called on the socket thread with what a DMA_READ brought.
type ReadCompletion = Box<dyn FnOnce(Result<&[u8], Errno>) + Send>;

/// Why a request was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// No client is connected, or it has not negotiated a version yet.
    #[error("no client is connected")]
    NotConnected,
    /// Longer than the client takes in one message.
    #[error("the data exceeds the client's max_data_xfer_size of {0} bytes")]
    TooLong(u32),
    /// The client does not read, or does not reply to DMA_READ.
    #[error("too many messages are queued or unanswered")]
    QueueFull,
}

/// What happened so far, over all connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Commands handled.
    pub commands: u64,
    /// Error replies.
    pub error_replies: u64,
    /// Errors of commands that wanted no reply.
    pub posted_errors: u64,
    /// DMA_READ and DMA_WRITE sent.
    pub requests: u64,
    /// DMA_READ and DMA_WRITE that the client answered with an error, or not as it should.
    pub request_errors: u64,
    /// Replies to nothing that was asked.
    pub stray_replies: u64,
}

#[derive(Default)]
pub(crate) struct AtomicCounters {
    pub(crate) commands: AtomicU64,
    pub(crate) error_replies: AtomicU64,
    pub(crate) posted_errors: AtomicU64,
    pub(crate) requests: AtomicU64,
    pub(crate) request_errors: AtomicU64,
    pub(crate) stray_replies: AtomicU64,
}

/// Count one event. Statistics only: nothing is ordered by them.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Sends to the client from any thread and never blocks: deferred replies, DMA_READ, DMA_WRITE.
///
/// Outlives connections: what belongs to a connection that ended is dropped, or fails.
#[derive(Clone)]
pub struct Sender {
    shared: Arc<Shared>,
}

/// The obligation to answer one command, exactly once: by [`Sender::complete`], or by dropping it, which answers `EIO`
/// (unless the device already answered by what it returned).
#[must_use = "a command waits for this answer"]
pub struct ReplyToken {
    key: u64,
    shared: Arc<Shared>,
}

#[derive(Default)]
pub(crate) struct Shared {
    state: Mutex<State>,
    pub(crate) counters: AtomicCounters,
}

#[derive(Default)]
struct State {
    outbox: Outbox,
    /// Tells the thread that reads the connection to look at the outbox again.
    waker: Option<Box<dyn Fn() + Send>>,
    /// Replies to maps, unmaps and resets in the order of their commands: a client that pipelines them waits for the
    /// youngest only, so none may overtake an older one (*vfio-user* "Command Concurrency").
    owed: VecDeque<Owed>,
    /// Key of the next owed reply. Never reused, so a token of an earlier connection finds nothing.
    next_key: u64,
    requests: HashMap<u16, Request>,
    next_request_id: u16,
    /// The client was found to leave requests unanswered, and that was logged.
    unanswered_logged: bool,
    /// The client's max_data_xfer_size, bytes; 0 before a version is negotiated.
    max_request_size: u32,
}

struct Owed {
    command: Command,
    reply: Reply,
}

#[derive(Debug)]
enum Reply {
    /// The device is being called, and may still answer by what it returns.
    Offered,
    /// As `Offered`, but the token is gone.
    Dropped,
    /// The token's holder answers.
    Deferred,
    /// Known; sent once no older one is missing.
    Ready(Result<u64, Errno>),
}

/// What it takes to answer a command.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Command {
    pub(crate) header: Header,
    /// Payload of a DMA_UNMAP, which its reply repeats.
    pub(crate) unmap: Option<spec::DmaUnmap>,
}

enum Request {
    Write { address: u64 },
    Read { address: u64, len: usize, completion: ReadCompletion },
}

impl Sender {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Answers the command that `token` stands for: bytes unmapped (a reset ignores the number), or an errno. Nothing
    /// is sent when its connection has ended.
    pub fn complete(&self, token: ReplyToken, result: Result<u64, Errno>) {
        assert!(Arc::ptr_eq(&self.shared, &token.shared), "a token is completed by its own server's sender");
        self.shared.resolve(token.key, result);
        // The token's Drop finds its key gone, or its reply `Ready`.
    }

    /// Stores `data` at `address` of client memory (DMA_WRITE). The client's reply is consumed when it comes, and an
    /// error in it counted ([`Counters::request_errors`]). A client that never answers goes on getting requests.
    pub fn dma_write(&self, address: u64, data: &[u8]) -> Result<(), SendError> {
        self.shared.request(command::DMA_WRITE, address, data.len(), data, Request::Write { address })
    }

    /// Loads `len` bytes at `address` of client memory (DMA_READ). `completion` is called on the socket thread: with
    /// the bytes, the client's errno, `EIO` for a malformed reply, or `ECONNRESET` when the connection ends first. It
    /// is dropped uncalled when this returns an error.
    pub fn dma_read(
        &self,
        address: u64,
        len: usize,
        completion: impl FnOnce(Result<&[u8], Errno>) + Send + 'static,
    ) -> Result<(), SendError> {
        let request = Request::Read { address, len, completion: Box::new(completion) };
        self.shared.request(command::DMA_READ, address, len, &[], request)
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        let c = &self.shared.counters;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counters {
            commands: get(&c.commands),
            error_replies: get(&c.error_replies),
            posted_errors: get(&c.posted_errors),
            requests: get(&c.requests),
            request_errors: get(&c.request_errors),
            stray_replies: get(&c.stray_replies),
        }
    }
}

impl Drop for ReplyToken {
    fn drop(&mut self) {
        self.shared.dropped(self.key);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the send half")
    }

    /// Begins a connection. Without a transport, messages stay queued for [`Shared::take`].
    pub(crate) fn open(&self, transmit: Option<Box<dyn Transmit>>, waker: Option<Box<dyn Fn() + Send>>) {
        let mut state = self.lock();
        state.outbox.open(transmit);
        state.waker = waker;
    }

    /// Ends a connection: what was to be sent is dropped, what was asked fails.
    pub(crate) fn close(&self) {
        let requests = {
            let mut state = self.lock();
            state.outbox.close();
            state.waker = None;
            state.owed.clear();
            state.max_request_size = 0;
            state.unanswered_logged = false;
            std::mem::take(&mut state.requests)
        };
        for request in requests.into_values() {
            if let Request::Read { completion, .. } = request {
                completion(Err(Errno::ECONNRESET));
            }
        }
    }

    /// The client takes requests from now on, of at most `size` bytes of data.
    pub(crate) fn negotiated(&self, size: u32) {
        self.lock().max_request_size = size;
    }

    pub(crate) fn flush(&self) {
        self.lock().outbox.flush();
    }

    pub(crate) fn take(&self) -> Option<Outgoing> {
        self.lock().outbox.take()
    }

    pub(crate) fn has_queued(&self) -> bool {
        self.lock().outbox.queued_bytes() > 0
    }

    pub(crate) fn is_sending(&self) -> bool {
        self.lock().outbox.is_connected()
    }

    /// Whether so much is queued or owed that no further command should be handled.
    pub(crate) fn is_congested(&self) -> bool {
        let state = self.lock();
        state.outbox.queued_bytes() >= MAX_QUEUED_BYTES || state.owed.len() >= MAX_OWED_REPLIES
    }

    /// Sends a finished reply at once.
    pub(crate) fn send_reply(&self, bytes: &[u8], fds: Vec<OwnedFd>) {
        self.lock().send(bytes, fds);
    }

    /// Takes a place in the order of replies, and hand out the token for it.
    pub(crate) fn owe(self: &Arc<Self>, command: Command) -> ReplyToken {
        let key = self.lock().push_owed(command, Reply::Offered);
        ReplyToken { key, shared: Arc::clone(self) }
    }

    /// Answers a command whose reply may not overtake an older one.
    pub(crate) fn reply_in_order(&self, command: Command, result: Result<u64, Errno>) {
        let mut state = self.lock();
        state.push_owed(command, Reply::Ready(result));
        state.release(&self.counters);
    }

    /// Takes the answer from the token's holder, or from what the device returned. Only the first answer counts.
    pub(crate) fn resolve(&self, key: u64, result: Result<u64, Errno>) {
        let mut state = self.lock();
        match state.owed_reply(key) {
            None | Some(Reply::Ready(_)) => {}
            Some(reply) => *reply = Reply::Ready(result),
        }
        state.release(&self.counters);
    }

    /// Notes that the device answers later, unless it has already answered or dropped the token.
    pub(crate) fn defer(&self, key: u64) {
        let mut state = self.lock();
        match state.owed_reply(key) {
            Some(reply @ Reply::Offered) => *reply = Reply::Deferred,
            Some(reply @ Reply::Dropped) => *reply = abandoned(),
            None | Some(Reply::Deferred | Reply::Ready(_)) => {}
        }
        state.release(&self.counters);
    }

    /// Notes that the token was dropped.
    fn dropped(&self, key: u64) {
        let mut state = self.lock();
        match state.owed_reply(key) {
            Some(reply @ Reply::Offered) => *reply = Reply::Dropped,
            Some(reply @ Reply::Deferred) => *reply = abandoned(),
            // Answered, or its connection has ended.
            None | Some(Reply::Dropped | Reply::Ready(_)) => {}
        }
        state.release(&self.counters);
    }

    fn request(&self, command: u16, address: u64, len: usize, data: &[u8], request: Request) -> Result<(), SendError> {
        let mut state = self.lock();
        if !state.outbox.is_connected() || state.max_request_size == 0 {
            return Err(SendError::NotConnected);
        }
        let limit = state.max_request_size;
        let fixed = size_of::<Header>() + size_of::<DmaAccess>();
        let data_size = u32::try_from(len).ok().filter(|&n| n <= limit).ok_or(SendError::TooLong(limit))?;
        if state.outbox.queued_bytes() + fixed + data.len() > MAX_QUEUED_BYTES {
            return Err(SendError::QueueFull);
        }
        if state.requests.len() >= MAX_REQUESTS && !state.expire_oldest_write() {
            return Err(SendError::QueueFull);
        }
        let message_size = u32::try_from(fixed + data.len()).expect("bounded by MAX_QUEUED_BYTES");
        let message_id = state.insert_request(request);
        let header = Header { message_id, command, message_size, flags: spec::TYPE_COMMAND, error: 0 };
        let mut bytes = Vec::with_capacity(fixed + data.len());
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(DmaAccess { address, count: data_size.into() }.as_bytes());
        bytes.extend_from_slice(data);
        state.send(&bytes, Vec::new());
        if !state.outbox.is_connected() {
            state.requests.remove(&message_id);
            return Err(SendError::NotConnected);
        }
        count(&self.counters.requests);
        Ok(())
    }

    /// Takes in the client's reply to a request.
    pub(crate) fn reply_received(&self, header: &Header, payload: &[u8]) {
        let Some(request) = self.lock().requests.remove(&header.message_id) else {
            tracing::debug!(id = header.message_id, "vfio-user reply without a request");
            return count(&self.counters.stray_replies);
        };
        let error = (header.flags & spec::FLAG_ERROR != 0).then(|| errno_of(header.error));
        let (address, error) = match request {
            // QEMU replies with the header alone, the specification wants address and count: neither says anything new.
            Request::Write { address } => (address, error),
            Request::Read { address, len, completion } => {
                let data = match error {
                    Some(e) => Err(e),
                    None => read_data(address, len, payload).ok_or(Errno::EIO),
                };
                let error = data.err();
                completion(data);
                (address, error)
            }
        };
        if let Some(error) = error {
            tracing::debug!(%error, address = format_args!("{address:#x}"), "vfio-user request failed");
            count(&self.counters.request_errors);
        }
    }
}

impl State {
    fn send(&mut self, bytes: &[u8], fds: Vec<OwnedFd>) {
        if self.outbox.send(bytes, fds) {
            self.wake();
        }
    }

    fn wake(&self) {
        if let Some(waker) = &self.waker {
            waker();
        }
    }

    fn push_owed(&mut self, command: Command, reply: Reply) -> u64 {
        let key = self.next_key;
        self.next_key += 1;
        self.owed.push_back(Owed { command, reply });
        key
    }

    fn owed_reply(&mut self, key: u64) -> Option<&mut Reply> {
        let oldest = self.next_key - self.owed.len() as u64;
        let index = usize::try_from(key.checked_sub(oldest)?).ok()?;
        self.owed.get_mut(index).map(|owed| &mut owed.reply)
    }

    /// Sends the replies that nothing older holds back.
    fn release(&mut self, counters: &AtomicCounters) {
        let was_full = self.owed.len() >= MAX_OWED_REPLIES;
        while let Some(Owed { reply: Reply::Ready(result), .. }) = self.owed.front() {
            let result = *result;
            let owed = self.owed.pop_front().expect("the front was just looked at");
            self.answer(&owed.command, result, counters);
        }
        if was_full && self.owed.len() < MAX_OWED_REPLIES {
            self.wake();
        }
    }

    fn answer(&mut self, command: &Command, result: Result<u64, Errno>, counters: &AtomicCounters) {
        let posted = command.header.flags & spec::FLAG_NO_REPLY != 0;
        match result {
            Err(_) if posted => count(&counters.posted_errors),
            Ok(_) if posted => {}
            Err(errno) => {
                count(&counters.error_replies);
                self.send(error_reply(&command.header, errno).as_bytes(), Vec::new());
            }
            Ok(size) => {
                let entry = command.unmap.map(|entry| spec::DmaUnmap { size, argsz: DMA_UNMAP_SIZE, ..entry });
                let payload = entry.as_ref().map_or(&[][..], IntoBytes::as_bytes);
                let message_size = HEADER_SIZE + if entry.is_some() { DMA_UNMAP_SIZE } else { 0 };
                let header = reply_header(&command.header, message_size);
                self.send(&[header.as_bytes(), payload].concat(), Vec::new());
            }
        }
    }

    /// No longer expects the reply to the oldest DMA_WRITE, which brings nothing but an error. The request itself stays
    /// on its way. A reply that comes later is a stray one, and its message ID rests for some 64 000 requests. False if
    /// there is no DMA_WRITE.
    fn expire_oldest_write(&mut self) -> bool {
        let next = self.next_request_id;
        let writes = self.requests.iter().filter(|(_, request)| matches!(request, Request::Write { .. }));
        let Some(oldest) = writes.map(|(&id, _)| id).max_by_key(|&id| next.wrapping_sub(id)) else { return false };
        self.requests.remove(&oldest);
        if !std::mem::replace(&mut self.unanswered_logged, true) {
            tracing::warn!(
                "the VMM has left {MAX_REQUESTS} DMA_WRITE requests unanswered: if it ignores them, the guest gets no \
                 interrupts from the IOMMU, and work that misses a page waits until it times out"
            );
        }
        true
    }

    fn insert_request(&mut self, request: Request) -> u16 {
        assert!(self.requests.len() <= MAX_REQUESTS, "the caller checked that a message id is free");
        while self.requests.contains_key(&self.next_request_id) {
            self.next_request_id = self.next_request_id.wrapping_add(1);
        }
        let id = self.next_request_id;
        self.next_request_id = id.wrapping_add(1);
        self.requests.insert(id, request);
        id
    }
}

const HEADER_SIZE: u32 = 16;
const DMA_UNMAP_SIZE: u32 = 24;
const _: () =
    assert!(size_of::<Header>() == HEADER_SIZE as usize && size_of::<spec::DmaUnmap>() == DMA_UNMAP_SIZE as usize);

/// The answer to a command whose token was dropped.
fn abandoned() -> Reply {
    tracing::error!("a deferred vfio-user reply was dropped unanswered");
    Reply::Ready(Err(Errno::EIO))
}

/// The header of a reply of `message_size` bytes that reports success.
pub(crate) fn reply_header(request: &Header, message_size: u32) -> Header {
    let Header { message_id, command, .. } = *request;
    Header { message_id, command, message_size, flags: spec::TYPE_REPLY, error: 0 }
}

/// An error reply: nothing but a header (*vfio-user* "Header"). An errno that is no error becomes `EIO`.
pub(crate) fn error_reply(request: &Header, errno: Errno) -> Header {
    let error = u32::try_from(errno as i32).ok().filter(|&e| e != 0).unwrap_or(Errno::EIO as i32 as u32);
    Header { flags: spec::TYPE_REPLY | spec::FLAG_ERROR, error, ..reply_header(request, HEADER_SIZE) }
}

/// The errno of an error reply, which may be absent (*vfio-user* "Header").
fn errno_of(error: u32) -> Errno {
    match i32::try_from(error).map(Errno::from_raw) {
        Ok(Errno::UnknownErrno) | Err(_) => Errno::EIO,
        Ok(errno) => errno,
    }
}

/// The data of a DMA_READ reply, if it is what was asked for.
fn read_data(address: u64, len: usize, payload: &[u8]) -> Option<&[u8]> {
    let (fixed, data) = DmaAccess::read_from_prefix(payload).ok()?;
    (fixed.address == address && fixed.count == len as u64 && data.len() == len).then_some(data)
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").field("counters", &self.counters()).finish_non_exhaustive()
    }
}

impl fmt::Debug for ReplyToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplyToken").field("key", &self.key).finish_non_exhaustive()
    }
}

impl ReplyToken {
    pub(crate) fn key(&self) -> u64 {
        self.key
    }
}
