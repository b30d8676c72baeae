//! The socket thread's loop.
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::socket::{UnixTransmit, receive};
use super::spin::Spin;
use crate::device::Device;
use crate::input::ProtocolError;
use crate::server::{Progress, Server};

/// How to serve a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Longest time to look for the next message before sleeping, µs; 0 always sleeps. Less is used while messages are
    /// far apart.
    pub max_spin_us: u32,
}

impl Default for Options {
    fn default() -> Self {
        // A trapped access under TCG takes some 77 µs, so the next one of a burst comes within this.
        Self { max_spin_us: 100 }
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
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Serves clients of `listener`, one after another, on this thread, until `stop` is triggered. A second client that
/// connects meanwhile waits in the listener's backlog until the first is gone (QEMU gives up after 5 s without a
/// reply). What goes wrong with a connection ends that connection only, and is logged.
///
/// Errors: `poll` or `accept` failed for a reason of our own, such as too many open files.
pub fn serve(
    listener: &UnixListener,
    server: &mut Server,
    device: &mut dyn Device,
    options: &Options,
    stop: &Stop,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let wake = Arc::new(event()?);
    while let Some(stream) = accept(listener, stop)? {
        tracing::debug!("vfio-user client connected");
        let stream = Arc::new(stream);
        let waker = Arc::clone(&wake);
        server.connect(Some(Box::new(UnixTransmit(Arc::clone(&stream)))), Some(Box::new(move || signal(&waker))));
        let spin = Spin::new(Duration::from_micros(options.max_spin_us.into()));
        let ended =
            Connection { stream: &stream, server: &mut *server, device: &mut *device, wake: &wake, stop, spin }.run();
        server.disconnect(device);
        match ended {
            Ended::Closed | Ended::Stopped => tracing::debug!("vfio-user connection ended: {ended}"),
            Ended::Protocol(_) | Ended::Io(_) => tracing::warn!("vfio-user connection ended: {ended}"),
        }
    }
    Ok(())
}

/// The next client; `None` when stopped.
fn accept(listener: &UnixListener, stop: &Stop) -> io::Result<Option<UnixStream>> {
    loop {
        if stop.is_triggered() {
            return Ok(None);
        }
        match listener.accept() {
            Ok((stream, _)) => return Ok(Some(stream)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                wait(&mut [
                    PollFd::new(listener.as_fd(), PollFlags::POLLIN),
                    PollFd::new(stop.event().as_fd(), PollFlags::POLLIN),
                ])?;
            }
            // The client has gone, or a signal came.
            Err(e) if matches!(e.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => {}
            Err(e) => return Err(e),
        }
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
        ];
        wait(&mut fds)?;
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

/// Sleeps until one of `fds` is ready, or a signal came.
fn wait(fds: &mut [PollFd<'_>]) -> io::Result<()> {
    match poll(fds, PollTimeout::NONE) {
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
