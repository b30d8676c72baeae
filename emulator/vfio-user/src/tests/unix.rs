//! Over a real socket, with the loop of a real thread.
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use svadev_spec::vfio_user::{DmaAccess, DmaUnmap, Header, TYPE_REPLY, Version, command};
use zerocopy::{FromBytes, IntoBytes};

use super::fake::{Call, Fake, SPARSE, TRAPPED};
use super::{memfd, same_file};
use crate::client::SocketClient;
use crate::client::request::dma_map;
use crate::unix::{Options, Owner, Stop, serve};
use crate::{Limits, Sender, Server};

/// A server on a thread of its own.
pub(super) struct Served {
    dir: tempfile::TempDir,
    stop: Stop,
    pub(super) sender: Sender,
    thread: Option<JoinHandle<Fake>>,
}

impl Served {
    pub(super) fn start(options: Options) -> Self {
        Self::start_with(options, |_| Fake::new())
    }

    pub(super) fn start_with(options: Options, device: impl FnOnce(Sender) -> Fake) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
        let stop = Stop::new().unwrap();
        let mut server = Server::new(Limits::default());
        let sender = server.sender();
        let mut device = device(sender.clone());
        let thread = std::thread::spawn({
            let stop = stop.clone();
            move || {
                serve(&listener, &mut server, &mut device, &options, &Owner::default(), &stop).unwrap();
                device
            }
        });
        Self { dir, stop, sender, thread: Some(thread) }
    }

    pub(super) fn path(&self) -> std::path::PathBuf {
        self.dir.path().join("socket")
    }

    fn connect(&self) -> SocketClient {
        SocketClient::connect(&self.path()).unwrap()
    }

    /// Connects and agrees on a version.
    fn negotiate(&self) -> SocketClient {
        let peer = self.connect();
        peer.negotiate(super::QEMU_PROPOSAL).unwrap();
        peer
    }

    /// Ends the thread and take what the device saw.
    pub(super) fn stop(mut self) -> Fake {
        self.stop.trigger();
        self.thread.take().unwrap().join().unwrap()
    }
}

/// Waits until the server closes the connection.
fn expect_end(peer: &SocketClient) {
    match peer.stream().read(&mut [0]) {
        Ok(n) => assert_eq!(n, 0),
        Err(e) => assert_eq!(e.kind(), ErrorKind::ConnectionReset),
    }
}

#[test]
fn accesses_with_and_without_spinning() {
    for max_spin_us in [0, 100, 1_000_000] {
        let served = Served::start(Options { max_spin_us, ..Options::default() });
        let peer = served.negotiate();
        for i in 0..200u32 {
            peer.write(TRAPPED, u64::from(i % 64) * 4, &i.to_ne_bytes()).unwrap();
            assert_eq!(peer.read(TRAPPED, u64::from(i % 64) * 4).unwrap(), i.to_ne_bytes());
        }
        let device = served.stop();
        assert_eq!(device.calls.len(), 401);
        assert_eq!(device.calls.last(), Some(&Call::Disconnected));
        expect_end(&peer);
    }
}

#[test]
fn descriptors_go_both_ways_and_are_closed_on_exec() {
    let served = Served::start(Options::default());
    let peer = served.negotiate();
    let file = memfd(0x4000);
    peer.map(0, 0x4000, file.as_fd()).unwrap();
    let theirs = peer.region_file(SPARSE).unwrap();
    let device = served.stop();
    assert!(same_file(&theirs, &device.shared_memory));
    assert!(same_file(&file, &device.fds[0]));
    for fd in [&theirs, &device.fds[0]] {
        assert_eq!(nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_GETFD).unwrap(), libc::FD_CLOEXEC);
    }
}

#[test]
fn pipelined_messages_keep_their_descriptors() {
    let served = Served::start(Options::default());
    let peer = served.negotiate();
    let files: Vec<OwnedFd> = (1..=8).map(|i| memfd(i * 4096)).collect();
    // As QEMU does when an address space changes: no waiting between the messages.
    for (i, file) in (0u64..).zip(&files) {
        let (with_file, without) = (dma_map(i << 20, (i + 1) * 4096, 0), dma_map((i << 20) + (1 << 19), 4096, 0));
        peer.send(command::DMA_MAP, with_file.as_bytes(), &[file.as_fd()]).unwrap();
        peer.send(command::DMA_MAP, without.as_bytes(), &[]).unwrap();
    }
    for id in 1..=16 {
        let header = peer.receive().unwrap().header;
        assert_eq!((header.message_id, header.flags), (id, TYPE_REPLY));
    }
    let device = served.stop();
    let with_fd: Vec<bool> =
        device.calls.iter().filter_map(|c| if let Call::Map { fd, .. } = c { Some(*fd) } else { None }).collect();
    assert_eq!(with_fd, [true, false].repeat(8));
}

#[test]
fn a_client_that_goes_away_in_the_middle_of_a_message_makes_room_for_the_next() {
    let served = Served::start(Options::default());
    let whole = {
        let version = Version { major: 0, minor: 0 };
        let header = Header { command: command::VERSION, message_size: 20, ..Header::default() };
        [header.as_bytes(), version.as_bytes()].concat()
    };
    for cut in [0, 1, 15, 16, 19] {
        let peer = served.connect();
        peer.stream().write_all(&whole[..cut]).unwrap();
        drop(peer);
        let peer = served.negotiate();
        peer.write(TRAPPED, 0, &[7]).unwrap();
        assert_eq!(peer.read(TRAPPED, 0).unwrap(), [7]);
    }
    let device = served.stop();
    assert_eq!(device.calls.iter().filter(|c| **c == Call::Disconnected).count(), 10);
}

#[test]
fn a_second_client_is_refused_at_once_and_the_next_is_served() {
    let served = Served::start(Options::default());
    let first = served.negotiate();
    let second = served.connect();
    let version = Version { major: 0, minor: 0 };
    let id = second.send(command::VERSION, version.as_bytes(), &[]).unwrap();
    let header = second.receive().unwrap().header;
    assert_eq!((header.message_id, header.error), (id, nix::errno::Errno::EBUSY as u32));
    expect_end(&second);
    first.write(TRAPPED, 0, &[1]).unwrap();
    drop(first);
    let third = served.negotiate();
    assert_eq!(third.read(TRAPPED, 0).unwrap(), [1], "the fake device keeps its state");
}

#[test]
fn a_client_that_says_nothing_does_not_hold_the_device() {
    let served = Served::start(Options { version_limit: Duration::from_millis(20), ..Options::default() });
    let silent = served.connect();
    expect_end(&silent);
    let peer = served.negotiate();
    // Once it has a version, it may be silent as long as it likes.
    std::thread::sleep(Duration::from_millis(60));
    peer.write(TRAPPED, 0, &[7]).unwrap();
    assert_eq!(peer.read(TRAPPED, 0).unwrap(), [7]);
}

#[test]
fn a_protocol_error_closes_the_connection_and_no_other() {
    let served = Served::start(Options::default());
    let peer = served.negotiate();
    let header = Header { message_size: 15, ..Header::default() };
    peer.stream().write_all(header.as_bytes()).unwrap();
    expect_end(&peer);
    served.negotiate();
}

#[test]
fn a_stop_ends_a_loop_that_waits_for_a_client_or_a_message() {
    let served = Served::start(Options::default());
    assert!(served.stop().calls.is_empty());
    let served = Served::start(Options { max_spin_us: 0, ..Options::default() });
    let peer = served.negotiate();
    assert_eq!(served.stop().calls, [Call::Disconnected]);
    expect_end(&peer);
}

#[test]
fn other_threads_send_while_the_loop_sleeps() {
    let served = Served::start(Options { max_spin_us: 0, ..Options::default() });
    let peer = served.negotiate();
    let sender = served.sender.clone();
    std::thread::spawn(move || sender.dma_write(0x1000, b"data")).join().unwrap().unwrap();
    let write = peer.receive().unwrap();
    assert_eq!((write.header.command, &write.payload[16..]), (command::DMA_WRITE, &b"data"[..]));
    let (tx, rx) = mpsc::channel();
    served
        .sender
        .dma_read(0x2000, 3, move |data| tx.send((data.map(<[u8]>::to_vec), std::thread::current().id())).unwrap())
        .unwrap();
    let read = peer.receive().unwrap().header;
    let reply = Header { flags: TYPE_REPLY, message_size: 35, ..read };
    let access = DmaAccess { address: 0x2000, count: 3 };
    peer.stream().write_all(&[reply.as_bytes(), access.as_bytes(), b"abc"].concat()).unwrap();
    let (data, thread) = rx.recv_timeout(Duration::from_secs(20)).unwrap();
    assert_eq!(data.unwrap(), b"abc");
    assert_ne!(thread, std::thread::current().id(), "on the socket thread");
}

#[test]
fn a_deferred_reply_reaches_a_client_that_waits() {
    let served = Served::start_with(Options { max_spin_us: 0, ..Options::default() }, |sender| {
        let mut device = Fake::new();
        device.complete_resets_on_a_thread(sender);
        device
    });
    let peer = served.negotiate();
    for _ in 0..50 {
        assert!(peer.call(command::DEVICE_RESET, &[], &[]).unwrap().payload.is_empty());
    }
    drop(peer);
    served.stop();
}

#[test]
fn a_full_socket_loses_nothing_and_blocks_nobody() {
    let served = Served::start(Options { max_spin_us: 0, ..Options::default() });
    let peer = served.negotiate();
    // Neither side reads: what fits in no socket waits in the queue, and then senders are refused.
    let block = vec![0x5a; 64 << 10];
    let mut sent = 0;
    while served.sender.dma_write(sent, &block).is_ok() {
        sent += 1;
    }
    assert!((64..1024).contains(&sent), "{sent} of 64 KiB");
    let unmap = DmaUnmap { argsz: 24, flags: 2, address: 0, size: 0 };
    let id = peer.send(command::DMA_UNMAP, unmap.as_bytes(), &[]).unwrap();
    for i in 0..sent {
        let write = peer.receive().unwrap();
        assert_eq!(write.header.command, command::DMA_WRITE);
        let (access, data) = DmaAccess::read_from_prefix(&write.payload).unwrap();
        assert_eq!((access.address, data), (i, block.as_slice()));
    }
    let header = peer.receive().unwrap().header;
    assert_eq!((header.message_id, header.command), (id, command::DMA_UNMAP));
}
