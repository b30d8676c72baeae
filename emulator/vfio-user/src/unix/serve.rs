//! The socket thread's loop.
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use svadev_spec::vfio_user::Header;
use zerocopy::IntoBytes as _;

use super::owner::{Owner, Taken, peer};
use super::socket::{UnixTransmit, receive};
use super::spin::Spin;
use crate::device::Device;
use crate::input::ProtocolError;
use crate::sender::error_reply;
use crate::server::{Progress, Server};

/// How to serve a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Longest time to look for the next message before sleeping, µs; 0 always sleeps. Less is used while messages are
    /// far apart.
    pub max_spin_us: u32,
    /// Longest time from a client's connection to its VERSION. A client that says nothing does not hold the device.
    pub version_limit: Duration,
}

impl Default for Options {
    fn default() -> Self {
        // A trapped access under TCG takes some 77 µs, so the next one of a burst comes within this.
        Self { max_spin_us: 100, version_limit: Duration::from_secs(10) }
    }
}

/// Ends [`serve`], from any thread. A trigger is permanent.
#[derive(Clone, Debug)]
pub struct Stop(Arc<(AtomicBool, EventFd)>);

impl Stop {
    /// Makes one that is not triggered. Errors: no eventfd is available.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new((AtomicBool::new(false), event()?))))
    }

    /// Ends every [`serve`] that was given this.
    pub fn trigger(&self) {
        self.0.0.store(true, Ordering::Release);
        signal(&self.0.1);
    }

    /// Whether it was triggered.
    pub fn is_triggered(&self) -> bool {
        self.0.0.load(Ordering::Acquire)
    }

    fn event(&self) -> &EventFd {
        &self.0.1
    }
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("the client closed the connection")]
    Closed,
    #[error("the server was stopped")]
    Stopped,
    #[error("the client did not send VERSION within {0:?}")]
    Silent(Duration),
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Serves clients of `listener`, one after another, on this thread, until `stop` is triggered. A second client that
/// connects meanwhile, and one of another process than `owner` has, is refused at once with `EBUSY`. What goes wrong
/// with a connection ends that connection only, and is logged.
///
/// Errors: `poll` or `accept` failed for a reason of our own.
pub fn serve(
    listener: &UnixListener,
    server: &mut Server,
    device: &mut dyn Device,
    options: &Options,
    owner: &Owner,
    stop: &Stop,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let wake = Arc::new(event()?);
    while let Some(stream) = accept(listener, owner, stop)? {
        tracing::debug!("vfio-user client connected");
        let stream = Arc::new(stream);
        let waker = Arc::clone(&wake);
        server.connect(Some(Box::new(UnixTransmit(Arc::clone(&stream)))), Some(Box::new(move || signal(&waker))));
        let spin = Spin::new(Duration::from_micros(options.max_spin_us.into()));
        let (stream, wake) = (&*stream, &*wake);
        let version_by = Instant::now() + options.version_limit;
        let (server, device) = (&mut *server, &mut *device);
        let connection = Connection { stream, server, device, wake, stop, spin, listener, owner, options, version_by };
        let ended = connection.run();
        server.disconnect(device);
        owner.give_back();
        match ended {
            Ended::Closed | Ended::Stopped => tracing::debug!("vfio-user connection ended: {ended}"),
            Ended::Protocol(_) | Ended::Io(_) | Ended::Silent(_) => {
                tracing::warn!("vfio-user connection ended: {ended}");
            }
        }
    }
    Ok(())
}

/// The next client of the machine's owner; `None` when stopped.
fn accept(listener: &UnixListener, owner: &Owner, stop: &Stop) -> io::Result<Option<UnixStream>> {
    let mut out_of_files = false;
    'next: loop {
        if stop.is_triggered() {
            return Ok(None);
        }
        match listener.accept() {
            Ok((stream, _)) => {
                let process = peer(&stream);
                loop {
                    match owner.take(process) {
                        Taken::Yes => return Ok(Some(stream)),
                        Taken::ByAnother(other) => {
                            refuse(stream, process, other);
                            continue 'next;
                        }
                        // Its other sockets are about to say so.
                        Taken::ByTheDead => sleep_until(stop, 20)?,
                    }
                    if stop.is_triggered() {
                        return Ok(None);
                    }
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                let mut fds = [
                    PollFd::new(listener.as_fd(), PollFlags::POLLIN),
                    PollFd::new(stop.event().as_fd(), PollFlags::POLLIN),
                ];
                wait(&mut fds, PollTimeout::NONE)?;
            }
            // The client has gone, or a signal came.
            Err(e) if matches!(e.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => {}
            Err(e) if is_out_of_files(&e) => {
                if !std::mem::replace(&mut out_of_files, true) {
                    tracing::warn!("cannot accept a client yet: {e}; raise the limit of open files (ulimit -n)");
                }
                sleep_until(stop, 100)?;
            }
            Err(e) => return Err(e),
        }
    }
}

/// Whether somebody else may make room for what failed.
fn is_out_of_files(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

/// Sleeps for so many milliseconds, or until `stop` is triggered.
fn sleep_until(stop: &Stop, ms: u16) -> io::Result<()> {
    wait(&mut [PollFd::new(stop.event().as_fd(), PollFlags::POLLIN)], PollTimeout::from(ms))
}

/// Answers a client's first command with `EBUSY` and closes the connection, on a thread of its own: the client may take
/// its time. Of many at once, some are closed without an answer.
fn refuse(stream: UnixStream, process: i32, owner: i32) {
    static REFUSING: AtomicUsize = AtomicUsize::new(0);
    const MOST: usize = 4;
    tracing::warn!("a VMM (process {process}) was refused: process {owner} uses this machine");
    if REFUSING.fetch_add(1, Ordering::Relaxed) >= MOST {
        REFUSING.fetch_sub(1, Ordering::Relaxed);
        return;
    }
    let answer = move || {
        let answer = || -> io::Result<()> {
            stream.set_nonblocking(false)?;
            stream.set_read_timeout(Some(Duration::from_secs(2)))?;
            let mut header = Header::default();
            (&stream).read_exact(header.as_mut_bytes())?;
            let rest = u64::from(header.message_size).saturating_sub(size_of::<Header>() as u64).min(4096);
            io::copy(&mut (&stream).take(rest), &mut io::sink())?;
            (&stream).write_all(error_reply(&header, Errno::EBUSY).as_bytes())
        };
        // A client that went away needs no answer.
        let _ = answer();
        REFUSING.fetch_sub(1, Ordering::Relaxed);
    };
    if std::thread::Builder::new().name("refuse".into()).spawn(answer).is_err() {
        REFUSING.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Connection<'a> {
    stream: &'a UnixStream,
    server: &'a mut Server,
    device: &'a mut dyn Device,
    /// Signalled when a message was queued, and when congestion ended.
    wake: &'a EventFd,
    stop: &'a Stop,
    spin: Spin,
    listener: &'a UnixListener,
    owner: &'a Owner,
    options: &'a Options,
    /// When VERSION must have come.
    version_by: Instant,
}

impl Connection<'_> {
    fn run(mut self) -> Ended {
        loop {
            if let Err(ended) = self.turn() {
                return ended;
            }
        }
    }

    /// Handles what was received, then receive more, or wait until that is worth a try.
    fn turn(&mut self) -> Result<(), Ended> {
        if self.stop.is_triggered() {
            return Err(Ended::Stopped);
        }
        match self.server.poll(self.device)? {
            Progress::Handled => Ok(()),
            Progress::Congested => {
                self.sleep(PollFlags::empty())?;
                Ok(())
            }
            Progress::NeedInput => {
                let since = Instant::now();
                while !self.receive()? {
                    if since.elapsed() >= self.spin.window() {
                        if !self.sleep(PollFlags::POLLIN)? {
                            return Ok(());
                        }
                    } else {
                        // The client may need this very core to go on.
                        std::thread::yield_now();
                    }
                    if self.stop.is_triggered() {
                        return Err(Ended::Stopped);
                    }
                }
                self.spin.waited(since.elapsed());
                Ok(())
            }
        }
    }

    /// Receives what is there. False when nothing is.
    fn receive(&mut self) -> Result<bool, Ended> {
        if !self.server.is_sending() {
            return Err(Ended::Closed);
        }
        let received = match receive(self.stream, self.server.space()) {
            Ok(r) => r,
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => return Ok(false),
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Err(Ended::Closed),
            Err(e) => return Err(e.into()),
        };
        if received.fds_lost {
            return Err(ProtocolError::LostFds.into());
        }
        if received.bytes == 0 {
            return Err(Ended::Closed);
        }
        self.server.filled(received.bytes, received.fds)?;
        Ok(true)
    }

    /// Sleeps until the socket is ready, or somebody wakes us; then send what waits. True when there is something to
    /// receive.
    fn sleep(&mut self, input: PollFlags) -> Result<bool, Ended> {
        let output = if self.server.has_queued() { PollFlags::POLLOUT } else { PollFlags::empty() };
        let mut fds = [
            PollFd::new(self.stream.as_fd(), input | output),
            PollFd::new(self.wake.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.stop.event().as_fd(), PollFlags::POLLIN),
            PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
        ];
        let left = match self.server.is_negotiated() {
            true => PollTimeout::NONE,
            false => {
                let left = self.version_by.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(Ended::Silent(self.options.version_limit));
                }
                // Rounded up: a wait of less than a millisecond would be none.
                PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
            }
        };
        wait(&mut fds, left)?;
        if fds[3].any().unwrap_or(false) {
            self.turn_away()?;
        }
        let ready = fds[0].revents().unwrap_or(PollFlags::empty());
        if fds[1].any().unwrap_or(false) {
            // Read before the queue is looked at again, so that a later signal is not lost.
            let _ = self.wake.read();
        }
        if ready.contains(PollFlags::POLLOUT) {
            self.server.flush();
        }
        // With input wanted, receiving what is left finds the end by itself.
        if input.is_empty() && ready.intersects(PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL) {
            return Err(Ended::Closed);
        }
        Ok(ready.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR))
    }
}

impl Connection<'_> {
    /// Refuses a second client, unless ours has gone: then that one is next.
    fn turn_away(&self) -> io::Result<()> {
        // Looked at after the second client came: whoever closes a connection and makes a new one is not refused.
        let mut ours = [PollFd::new(self.stream.as_fd(), PollFlags::empty())];
        wait(&mut ours, PollTimeout::ZERO)?;
        let gone = PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL;
        if ours[0].revents().is_some_and(|revents| revents.intersects(gone)) {
            return Ok(());
        }
        // If it has gone meanwhile, or cannot be taken, nobody is refused.
        if let Ok((stream, _)) = self.listener.accept() {
            let process = peer(&stream);
            refuse(stream, process, self.owner.process());
        }
        Ok(())
    }
}

/// Sleeps until one of `fds` is ready, the time is over, or a signal came.
fn wait(fds: &mut [PollFd<'_>], timeout: PollTimeout) -> io::Result<()> {
    match poll(fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn event() -> io::Result<EventFd> {
    Ok(EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?)
}

/// Makes an eventfd readable. It fails only when its count is at the maximum, and then it is readable.
fn signal(event: &EventFd) {
    let _ = event.write(1);
}
