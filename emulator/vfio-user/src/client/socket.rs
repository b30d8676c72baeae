//! The VMM's end of a function's socket: as much of a vfio-user client as it takes to bring a function up and to access its
//! registers, with blocking reads, as QEMU's threads wait.
use std::cell::{Cell, RefCell};
use std::io::{IoSlice, IoSliceMut, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use svadev_spec::vfio_user::{
    DmaMap, DmaMapFlags, FLAG_ERROR, Header, IrqSet, IrqSetFlags, RegionAccess, RegionInfo, TYPE_MASK, TYPE_REPLY,
    Version, command, region,
};
use zerocopy::{FromBytes as _, IntoBytes as _};

/// How long a reply may take before the benchmark gives up, seconds.
const PATIENCE: u64 = 20;
/// Most bytes of a message here: a region's description is the longest.
const MAX_MESSAGE: usize = 512;

/// A connection to one function. Used by one thread.
#[derive(Debug)]
pub(crate) struct Client {
    stream: RefCell<UnixStream>,
    next_id: Cell<u16>,
}

/// The bytes of a REGION_READ request.
pub(crate) fn read_request(message_id: u16, region: u32, offset: u64, count: u32) -> [u8; 32] {
    let header = Header { message_id, command: command::REGION_READ, message_size: 32, ..Header::default() };
    let mut bytes = [0; 32];
    bytes[..16].copy_from_slice(header.as_bytes());
    bytes[16..].copy_from_slice(RegionAccess { offset, region, count }.as_bytes());
    bytes
}

impl Client {
    /// Connects and agrees on a version. Errors: the socket's, or a server that does not speak the protocol.
    pub(crate) fn connect(path: &Path) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(path).with_context(|| path.display().to_string())?;
        let client = Self::over(stream)?;
        let version = Version { major: 0, minor: 0 };
        client.call(command::VERSION, &[version.as_bytes(), b"{\"capabilities\":{}}\0"].concat(), &[])?;
        Ok(client)
    }

    /// Over a stream whose other end is ready for anything.
    pub(crate) fn over(stream: UnixStream) -> anyhow::Result<Self> {
        stream.set_read_timeout(Some(Duration::from_secs(PATIENCE)))?;
        Ok(Self { stream: RefCell::new(stream), next_id: Cell::new(0) })
    }

    /// Loads a register of 4 bytes: what the `trap` suite measures.
    pub(crate) fn read_register(&self, region: u32, offset: u64) -> anyhow::Result<u32> {
        let id = self.next_id.replace(self.next_id.get().wrapping_add(1));
        let mut stream = self.stream.borrow_mut();
        stream.write_all(&read_request(id, region, offset, 4))?;
        let mut reply = [0; 36];
        stream.read_exact(&mut reply)?;
        ensure!(reply[0..2] == id.to_ne_bytes(), "a reply to something else");
        Ok(u32::from_ne_bytes([reply[32], reply[33], reply[34], reply[35]]))
    }

    /// Loads `N` bytes.
    pub(crate) fn read<const N: usize>(&self, region: u32, offset: u64) -> anyhow::Result<[u8; N]> {
        let access = RegionAccess { offset, region, count: u32::try_from(N)? };
        let (payload, _) = self.call(command::REGION_READ, access.as_bytes(), &[])?;
        payload[size_of::<RegionAccess>()..].try_into().context("a read of another length")
    }

    /// Stores.
    pub(crate) fn write(&self, region: u32, offset: u64, data: &[u8]) -> anyhow::Result<()> {
        let access = RegionAccess { offset, region, count: u32::try_from(data.len())? };
        self.call(command::REGION_WRITE, &[access.as_bytes(), data].concat(), &[]).map(drop)
    }

    /// Gives the function guest memory: `size` bytes from guest-physical address 0.
    pub(crate) fn map(&self, file: &OwnedFd, size: u64) -> anyhow::Result<()> {
        let flags = DmaMapFlags::READ | DmaMapFlags::WRITE;
        let map =
            DmaMap { argsz: u32::try_from(size_of::<DmaMap>())?, flags: flags.bits(), offset: 0, address: 0, size };
        self.call(command::DMA_MAP, map.as_bytes(), &[file.as_raw_fd()]).map(drop)
    }

    /// Connects an eventfd to one interrupt of a type.
    pub(crate) fn set_irq(&self, index: u32, start: u32, eventfd: RawFd) -> anyhow::Result<()> {
        let flags = (IrqSetFlags::DATA_EVENTFD | IrqSetFlags::ACTION_TRIGGER).bits();
        let set = IrqSet { argsz: u32::try_from(size_of::<IrqSet>())?, flags, index, start, count: 1 };
        self.call(command::DEVICE_SET_IRQS, set.as_bytes(), &[eventfd]).map(drop)
    }

    /// The file behind a region that can be mapped.
    pub(crate) fn region_file(&self, index: u32) -> anyhow::Result<OwnedFd> {
        let info = RegionInfo { argsz: 256, index, ..RegionInfo::default() };
        let (_, file) = self.call(command::DEVICE_GET_REGION_INFO, info.as_bytes(), &[])?;
        file.with_context(|| format!("region {index} came without a file"))
    }

    /// Offset of an extended capability in configuration space (PCIe 6.0 §7.6.3).
    pub(crate) fn extended_capability(&self, id: u16) -> anyhow::Result<u64> {
        let mut at = 0x100;
        while at != 0 {
            let word = u32::from_le_bytes(self.read(region::CONFIG, at)?);
            if word & 0xffff == u32::from(id) {
                return Ok(at);
            }
            at = u64::from(word >> 20);
        }
        bail!("the function has no extended capability {id:#x}")
    }

    /// Sends a command and takes its reply's payload, with a descriptor if one came.
    fn call(&self, command: u16, payload: &[u8], fds: &[RawFd]) -> anyhow::Result<(Vec<u8>, Option<OwnedFd>)> {
        let message_id = self.next_id.replace(self.next_id.get().wrapping_add(1));
        let message_size = u32::try_from(size_of::<Header>() + payload.len())?;
        let header = Header { message_id, command, message_size, ..Header::default() };
        let bytes = [header.as_bytes(), payload].concat();
        let rights = [ControlMessage::ScmRights(fds)];
        let rights = if fds.is_empty() { &[][..] } else { &rights };
        let mut stream = self.stream.borrow_mut();
        let sent =
            sendmsg::<UnixAddr>(stream.as_raw_fd(), &[IoSlice::new(&bytes)], rights, MsgFlags::MSG_NOSIGNAL, None)?;
        stream.write_all(&bytes[sent..])?;
        receive(&mut stream, message_id).with_context(|| format!("vfio-user command {command}"))
    }
}

/// Takes one reply.
fn receive(stream: &mut UnixStream, message_id: u16) -> anyhow::Result<(Vec<u8>, Option<OwnedFd>)> {
    let mut bytes = [0; MAX_MESSAGE];
    let mut control = nix::cmsg_space!([RawFd; 1]);
    let mut file = None;
    let mut got = {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<UnixAddr>(stream.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
        for part in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = part {
                file = fds.into_iter().map(own).next_back();
            }
        }
        message.bytes
    };
    while got < size_of::<Header>() {
        got += more(stream, &mut bytes[got..size_of::<Header>()])?;
    }
    let header = Header::read_from_bytes(&bytes[..size_of::<Header>()]).map_err(|_| anyhow::anyhow!("no header"))?;
    let size = usize::try_from(header.message_size)?;
    ensure!((size_of::<Header>()..=MAX_MESSAGE).contains(&size), "a reply of {size} bytes");
    while got < size {
        got += more(stream, &mut bytes[got..size])?;
    }
    ensure!(header.message_id == message_id && header.flags & TYPE_MASK == TYPE_REPLY, "a reply to something else");
    if header.flags & FLAG_ERROR != 0 {
        bail!("refused: {}", std::io::Error::from_raw_os_error(i32::try_from(header.error)?));
    }
    Ok((bytes[size_of::<Header>()..size].to_vec(), file))
}

fn more(stream: &mut UnixStream, into: &mut [u8]) -> anyhow::Result<usize> {
    match stream.read(into)? {
        0 => bail!("the function closed its socket"),
        count => Ok(count),
    }
}

#[allow(unsafe_code, reason = "nix hands received descriptors over as numbers")]
fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel just opened it for us, and nothing else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
