//! The server against a device that writes down what it is asked, over the in-memory transport unless a module says
//! otherwise.
mod access;
mod alloc;
mod dma;
mod fake;
mod fuzz;
mod info;
mod irqs;
mod malformed;
mod published_client;
mod requests;
mod unix;
mod version;

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::client::{LoopbackClient, Message};
use crate::{Limits, Progress, Server};
use fake::Fake;

/// What QEMU 11 proposes, in its words.
const QEMU_PROPOSAL: &str = r#"{"capabilities": {"max_dma_maps": 65535, "write_multiple": true, "migration": {"max_bitmap_size": 268435456, "pgsize": 4096}, "max_msg_fds": 16, "max_data_xfer_size": 1048576, "pgsizes": 4096}}"#;

/// A server, its device and a client that has agreed on a version.
struct Rig {
    server: Server,
    device: Fake,
    client: LoopbackClient,
}

impl Rig {
    fn new() -> Self {
        Self::with_limits(Limits::default())
    }

    fn with_limits(limits: Limits) -> Self {
        let mut rig = Self::unconnected(limits);
        rig.client.negotiate(&mut rig.server, &mut rig.device, QEMU_PROPOSAL).unwrap().result().unwrap();
        rig
    }

    /// Connected, with no version agreed on.
    fn unconnected(limits: Limits) -> Self {
        let mut server = Server::new(limits);
        let client = LoopbackClient::connect(&mut server, 16 << 20);
        Self { server, device: Fake::new(), client }
    }

    /// The reply's payload and descriptors, or its errno.
    fn call_fds(&mut self, command: u16, payload: &[u8], fds: Vec<OwnedFd>) -> Result<(Vec<u8>, Vec<OwnedFd>), Errno> {
        let message = self.client.call(&mut self.server, &mut self.device, command, payload, fds).expect("a reply");
        assert_eq!(message.header.command, command);
        assert_eq!(message.header.message_size as usize, 16 + message.payload.len());
        message.result()?;
        assert_eq!(message.header.error, 0);
        Ok((message.payload, message.fds))
    }

    fn call(&mut self, command: u16, payload: &[u8]) -> Result<Vec<u8>, Errno> {
        let (payload, fds) = self.call_fds(command, payload, Vec::new())?;
        assert!(fds.is_empty());
        Ok(payload)
    }

    fn call_as<T: FromBytes + IntoBytes + Immutable>(&mut self, command: u16, request: &T) -> Result<T, Errno> {
        let payload = self.call(command, request.as_bytes())?;
        Ok(T::read_from_bytes(&payload).expect("a reply of the request's form"))
    }

    fn pump(&mut self) -> Progress {
        self.client.pump(&mut self.server, &mut self.device).unwrap()
    }

    /// Let the server handle everything, and return all it sent.
    fn replies(&mut self) -> Vec<Message> {
        self.pump();
        std::iter::from_fn(|| self.client.receive()).collect()
    }

    fn disconnect(&mut self) {
        self.server.disconnect(&mut self.device);
    }
}

fn eventfd() -> OwnedFd {
    EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).unwrap().into()
}

fn memfd(size: u64) -> OwnedFd {
    let fd = memfd_create("test", MFdFlags::MFD_CLOEXEC).unwrap();
    File::from(fd.try_clone().unwrap()).set_len(size).unwrap();
    fd
}

/// The two descriptors are of one open file.
fn same_file(a: impl AsFd, b: impl AsFd) -> bool {
    let id = |fd: &dyn Fn() -> nix::sys::stat::FileStat| {
        let stat = fd();
        (stat.st_dev, stat.st_ino)
    };
    id(&|| nix::sys::stat::fstat(&a).unwrap()) == id(&|| nix::sys::stat::fstat(&b).unwrap())
}
