//! The open device file.
#![allow(unsafe_code, reason = "ioctl: the kernel reads and writes through the pointers that are passed")]

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use svadev_spec::device::{self, Features};
use zerocopy::FromZeros;

use crate::abi::{self, BindArgs, PlantSwapArgs, QueryArgs, SubmitArgs, UnbindArgs, WaitArgs};
use crate::{Completion, Descriptor, Error, Result};

/// How long [`Device::run`] waits. Longer than any timeout of the device or the driver, so theirs is what one sees.
const RUN_TIMEOUT: Duration = Duration::from_secs(60);

/// Next cookie of [`Device::run`]: from a range that programs are unlikely to use.
static RUN_COOKIE: AtomicU64 = AtomicU64::new(0x72_756e << 40);

/// How descriptors are submitted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SubmitFlags(u32);

impl SubmitFlags {
    /// The driver names the context's PASID in each descriptor.
    pub const NONE: Self = Self(0);
    /// A test hook that needs `CAP_SYS_RAWIO`: the descriptor's PASID is the caller's, see [`Descriptor::with_pasid`].
    pub const RAW: Self = Self(abi::SUBMIT_RAW);

    /// Any bits, for tests of the driver's checks.
    pub fn from_bits(bits: u32) -> Self {
        Self(bits)
    }
}

/// What the driver says about a function and this context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// Version of the driver's interface.
    pub uapi_version: u32,
    /// Major and minor version of the device's ABI.
    pub device_version: (u16, u16),
    /// Bit `n` set: opcode `n` is implemented.
    pub opcodes: u64,
    /// Longest operand, bytes.
    pub max_length: u64,
    /// Most entries of a scatter list.
    pub max_scatter: u32,
    /// Most descriptors of one context in flight.
    pub max_in_flight: u32,
    /// Most descriptors of one context in flight or completed and not collected.
    pub max_uncollected: u32,
    /// Queues of the function that can be had, the kernel's own among them.
    pub queues: u32,
    /// Engines of the function.
    pub engines: u32,
    /// PCI address, as in `0000:00:05.0`.
    pub pci_address: String,
    /// The context's PASID while it is bound.
    pub pasid: Option<u32>,
    /// Descriptors of this context in flight.
    pub in_flight: u32,
    /// Completions of this context not yet collected.
    pub uncollected: u32,
    /// Times the function was reset since its driver was bound.
    pub resets: u32,
    /// Most user queues of one context; 0 if the driver has none.
    pub max_user_queues: u32,
    /// User queues of all contexts of the function.
    pub user_queues: u32,
    /// What the function can do; nothing if the driver is too old to say.
    pub features: Features,
    /// State of the function: [`abi::STATE_RUNNING`] and so on.
    pub state: u32,
}

/// An open `/dev/svadevN`: one context of the driver. Dropping it closes the file; work in flight is aborted or drained then.
#[derive(Debug)]
pub struct Device {
    fd: OwnedFd,
}

impl Device {
    /// Opens a device file. Close-on-exec; [`Device::submit`] waits for room.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(path.as_ref(), 0)
    }

    /// Opens a device file with `O_NONBLOCK`: [`Device::submit`] gives `EAGAIN` instead of waiting for room.
    pub fn open_nonblocking(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(path.as_ref(), libc::O_NONBLOCK)
    }

    fn open_with(path: &Path, flags: i32) -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path);
        let errno = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
        file.map_err(errno).map_err(Error::system("open")).map(|file: File| Self { fd: file.into() })
    }

    /// Every `/dev/svadevN` there is, by N.
    pub fn paths() -> Vec<PathBuf> {
        let number = |path: &PathBuf| {
            let name = path.file_name()?.to_str()?;
            name.strip_prefix("svadev")?.parse::<u32>().ok()
        };
        let entries = std::fs::read_dir("/dev").into_iter().flatten().flatten();
        let mut found: Vec<_> = entries.map(|e| e.path()).filter_map(|p| Some((number(&p)?, p))).collect();
        found.sort();
        found.into_iter().map(|(_, path)| path).collect()
    }

    /// What the function can do and how this context stands. Never waits.
    pub fn query(&self) -> Result<Query> {
        let mut args = QueryArgs { argsz: size_of_u32::<QueryArgs>(), ..Default::default() };
        // SAFETY: `args` is a live QueryArgs of `argsz` bytes, all of which the kernel may write with any value.
        unsafe { abi::query(self.fd.as_raw_fd(), &raw mut args) }.map_err(Error::system("query"))?;
        Ok(Query::from_args(&args))
    }

    /// Binds this program's address space, so that descriptors can hold its pointers. The result is its PASID.
    pub fn bind(&self) -> Result<u32> {
        let mut args = BindArgs { argsz: size_of_u32::<BindArgs>(), ..Default::default() };
        // SAFETY: as in `query`.
        uninterrupted(|| unsafe { abi::bind(self.fd.as_raw_fd(), &raw mut args) }).map_err(Error::system("bind"))?;
        Ok(args.pasid)
    }

    /// Undoes [`Device::bind`], once: a second time is `EINVAL`. When it returns, no access of this context is under way.
    pub fn unbind(&self) -> Result<()> {
        let mut args = UnbindArgs { argsz: size_of_u32::<UnbindArgs>(), ..Default::default() };
        // SAFETY: as in `query`.
        uninterrupted(|| unsafe { abi::unbind(self.fd.as_raw_fd(), &raw mut args) })
            .map_err(Error::system("unbind"))?;
        Ok(())
    }

    /// Hands descriptors to the device and says how many it took, from the start; at least one, unless there are none.
    ///
    /// # Safety
    /// Until each descriptor's completion is seen or the context is unbound or closed, the device may write the memory that it names
    /// as destination, and reads what it names as source or list. The caller answers that no reference to the former and no
    /// exclusive reference to the latter lives meanwhile, and that nothing else relies on the bytes written. An address where
    /// nothing is mapped is harmless as long as nothing gets mapped there.
    pub unsafe fn submit(&self, descriptors: &[Descriptor]) -> Result<usize> {
        // SAFETY: the same contract.
        unsafe { self.submit_with(descriptors, SubmitFlags::NONE) }
    }

    /// As [`Device::submit`], with flags.
    ///
    /// # Safety
    /// As [`Device::submit`]. With [`SubmitFlags::RAW`] the memory is that of the PASID named, or whatever the function's DMA
    /// addresses lead to.
    pub unsafe fn submit_with(&self, descriptors: &[Descriptor], flags: SubmitFlags) -> Result<usize> {
        let mut args = SubmitArgs {
            argsz: size_of_u32::<SubmitArgs>(),
            flags: flags.0,
            descs: address_of(descriptors.as_ptr()),
            // The driver takes far fewer at once, so a longer list is only taken in more calls.
            count: u32::try_from(descriptors.len()).unwrap_or(u32::MAX),
            ..Default::default()
        };
        // SAFETY: `args` and the array behind `descs` live through the call; `Descriptor` is transparent over the kernel's
        // layout. What the device does later is the caller's contract.
        let submit = || unsafe { abi::submit(self.fd.as_raw_fd(), &raw mut args) };
        let taken = uninterrupted(submit).map_err(Error::system("submit"))?;
        Ok(usize::try_from(taken).expect("ioctl gives no negative number that is not an error"))
    }

    /// Submits all descriptors, in as many calls as that takes.
    ///
    /// # Safety
    /// As [`Device::submit`].
    pub unsafe fn submit_all(&self, descriptors: &[Descriptor]) -> Result<()> {
        let mut rest = descriptors;
        while !rest.is_empty() {
            // SAFETY: the same contract.
            let taken = unsafe { self.submit(rest)? };
            rest = &rest[taken..];
        }
        Ok(())
    }

    /// Collects up to `capacity` completions, waiting until `min` are there, nothing is in flight, or the time is over
    /// (`None`: for ever). Fewer than `min`, even none, is no error.
    pub fn wait(&self, min: usize, capacity: usize, timeout: Option<Duration>) -> Result<Vec<Completion>> {
        // The driver never holds more for one context, so more room is of no use.
        let capacity = capacity.min(abi::MAX_UNCOLLECTED as usize);
        let min = min.min(capacity);
        let mut raw = vec![device::Completion::new_zeroed(); capacity];
        let mut args = WaitArgs {
            argsz: size_of_u32::<WaitArgs>(),
            flags: 0,
            completions: address_of(raw.as_mut_ptr()),
            timeout_ns: timeout.map_or(-1, nanoseconds),
            capacity: u32::try_from(capacity).expect("bounded by MAX_UNCOLLECTED"),
            min: u32::try_from(min).expect("bounded by MAX_UNCOLLECTED"),
        };
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let wait = || {
            if let Some(deadline) = deadline {
                args.timeout_ns = nanoseconds(deadline.saturating_duration_since(Instant::now()));
            }
            // SAFETY: `raw` has room for `capacity` completions, any bytes of which are valid, and lives through the
            // call.
            unsafe { abi::wait(self.fd.as_raw_fd(), &raw mut args) }
        };
        let stored = uninterrupted(wait).map_err(Error::system("wait"))?;
        let stored = usize::try_from(stored).expect("ioctl gives no negative number that is not an error");
        raw[..stored].iter().map(|raw| Ok(Completion::from_raw(raw)?)).collect()
    }

    /// Submits one descriptor and waits for it. For contexts with nothing else in flight or uncollected: the completion of
    /// other work is an error, and lost to later waits.
    ///
    /// # Safety
    /// As [`Device::submit`].
    pub unsafe fn run(&self, descriptor: &Descriptor) -> Result<Completion> {
        // SAFETY: the same contract.
        unsafe { self.run_with(descriptor, SubmitFlags::NONE) }
    }

    /// As [`Device::run`], with flags.
    ///
    /// # Safety
    /// As [`Device::submit_with`].
    pub unsafe fn run_with(&self, descriptor: &Descriptor, flags: SubmitFlags) -> Result<Completion> {
        // A number of its own tells this completion from one that nobody collected, whatever cookies the program uses.
        let cookie = RUN_COOKIE.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the same contract.
        unsafe { self.submit_with(&[descriptor.with_cookie(cookie)], flags)? };
        let completions = self.wait(1, 1, Some(RUN_TIMEOUT))?;
        let completion = completions.first().copied().ok_or(Error::NoCompletion { seconds: RUN_TIMEOUT.as_secs() })?;
        if completion.cookie != cookie {
            return Err(Error::ForeignCompletion(completion));
        }
        Ok(Completion { cookie: descriptor.raw.cookie, ..completion })
    }

    /// poll(2) on the file: which of `interest` (`POLLIN`: completions, `POLLOUT`: room) and errors hold within `timeout`
    /// (`None`: for ever).
    pub fn poll(&self, interest: PollFlags, timeout: Option<Duration>) -> Result<PollFlags> {
        let mut fds = [PollFd::new(self.fd.as_fd(), interest)];
        let timeout = timeout.map_or(PollTimeout::NONE, |t| PollTimeout::try_from(t).unwrap_or(PollTimeout::MAX));
        uninterrupted(|| poll(&mut fds, timeout)).map_err(Error::system("poll"))?;
        Ok(fds[0].revents().unwrap_or_else(PollFlags::empty))
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Device {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl Device {
    /// Exchanges two neighbouring pages of this program, the first at `address`, and lets neither the IOMMU nor the device know: a mistake
    /// for tests. A second call puts them back. `ENOTTY` unless the module was loaded for it.
    ///
    /// # Safety
    /// As writing both pages: no reference to them lives, and nothing else relies on what is in them.
    pub unsafe fn plant_swap(&self, address: u64) -> Result<()> {
        let mut args = PlantSwapArgs { argsz: size_of_u32::<PlantSwapArgs>(), flags: 0, address };
        // SAFETY: as in `query`; what becomes of the pages is the caller's contract.
        unsafe { abi::plant_swap(self.fd.as_raw_fd(), &raw mut args) }.map_err(Error::system("plant_swap"))?;
        Ok(())
    }
}

impl From<OwnedFd> for Device {
    /// A context that came from elsewhere: inherited, duplicated or sent over a socket.
    fn from(fd: OwnedFd) -> Self {
        Self { fd }
    }
}

impl From<Device> for OwnedFd {
    fn from(device: Device) -> Self {
        device.fd
    }
}

impl Query {
    fn from_args(args: &QueryArgs) -> Self {
        let half = |value: u32| u16::try_from(value & 0xffff).expect("masked");
        let address = args.pci_address;
        Self {
            uapi_version: args.uapi_version,
            device_version: (half(args.device_version >> 16), half(args.device_version)),
            opcodes: args.opcodes,
            max_length: args.max_length,
            max_scatter: args.max_scatter,
            max_in_flight: args.max_in_flight,
            max_uncollected: args.max_uncollected,
            queues: args.queues,
            engines: args.engines,
            pci_address: format!(
                "{:04x}:{:02x}:{:02x}.{}",
                (address >> 16).max(args.pci_domain),
                address >> 8 & 0xff,
                address >> 3 & 0x1f,
                address & 7
            ),
            pasid: (args.pasid != 0).then_some(args.pasid),
            in_flight: args.in_flight,
            uncollected: args.uncollected,
            resets: args.resets,
            max_user_queues: args.max_user_queues,
            user_queues: args.user_queues,
            features: Features::from_bits_retain(args.features),
            state: args.state,
        }
    }
}

/// A time limit as the kernel's structures carry it.
fn nanoseconds(limit: Duration) -> i64 {
    i64::try_from(limit.as_nanos()).unwrap_or(i64::MAX)
}

/// Makes a call again if a signal came before it did anything: a signal handler of the program, or SIGSTOP and SIGCONT.
pub(crate) fn uninterrupted<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

/// Size of an argument structure as its `argsz` says it.
pub(crate) fn size_of_u32<T>() -> u32 {
    u32::try_from(size_of::<T>()).expect("argument structures are small")
}

/// A pointer as the kernel's structures carry it.
fn address_of<T>(pointer: *const T) -> u64 {
    pointer.expose_provenance() as u64
}
