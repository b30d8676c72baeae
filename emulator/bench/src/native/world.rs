//! The whole backend as it runs beside QEMU, and this thread in the place of QEMU, kernel and program: functions
//! brought up over their sockets, tables and rings in memory that both sides map, doorbell pages mapped from the
//! function's own file.
use std::cell::{Cell, RefCell};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use svadev_fabric::Bdf;
use svadev_host::{AcceleratorConfig, Host, HostConfig, IommuConfig, socket_path};
use svadev_iommu::UnitConfig;
use svadev_spec::device::{
    BAR_DOORBELLS, BAR_REGISTERS, BAR_UNIT, DOORBELL_STRIDE, QueuePasid, QueueSize, QueueStatus, QueueVector,
    bar_doorbells_size, doorbell, regs,
};
use svadev_spec::pcie::{self, extended_capability, header};
use svadev_spec::vfio_user::region;
use svadev_spec::vtd::invalidation::{
    InvalidateAddress, PasidDeviceTlb, PasidDeviceTlbAddress, PasidIotlb, Wait, descriptor_type,
    pasid_iotlb_granularity,
};
use svadev_spec::vtd::registers::offset;
use svadev_vfio_user::client::SocketClient;

use super::memory::Shared;
use super::processors::Processors;
use super::tables::{DOMAIN, Tables};
use super::wait::{PATIENCE, Spin};

/// Guest memory, bytes; sparse, so that what is never touched costs nothing.
const MEMORY: u64 = 1 << 30;
/// The invalidation queue: one page of 256-bit descriptors (VT-d 4.1 §6.5.2).
const QUEUE: u64 = 0x1000;
/// Where invalidation waits write their status.
const STATUS: u64 = 0x2000;
/// The IOMMU's own function: 00:05.0.
const UNIT: Bdf = Bdf(5 << 3);
/// The accelerator: 00:06.0.
const FUNCTION: Bdf = Bdf(6 << 3);
/// How long an engine looks for work before it sleeps, µs, as in a topology file that does not say.
const SPIN_US: u32 = 50;
const TABLES: std::ops::Range<u64> = 0x10_0000..0x200_0000;
const RINGS: u64 = 0x200_0000;
/// Room for one queue's two rings, bytes.
const RING_ROOM: u64 = 0x2_0000;
/// Where buffers begin and end, guest-physical.
pub(crate) const DATA: std::ops::Range<u64> = 0x800_0000..0x2000_0000;
/// The PASID of programs that need only one.
pub(crate) const PASID: u32 = 1;

/// Pages that map the buffers: each size has a window of the address space of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pages {
    /// 4 KiB.
    Small,
    /// 2 MiB.
    Large,
    /// 1 GiB.
    Huge,
}

impl Pages {
    const ALL: [Self; 3] = [Self::Small, Self::Large, Self::Huge];

    fn size_log2(self) -> u8 {
        match self {
            Self::Small => 12,
            Self::Large => 21,
            Self::Huge => 30,
        }
    }

    /// For tables.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Small => "4 KiB pages",
            Self::Large => "2 MiB pages",
            Self::Huge => "1 GiB pages",
        }
    }

    /// Where a program sees the byte at `gpa`.
    pub(crate) fn address(self, gpa: u64) -> u64 {
        (u64::from(self.size_log2()) << 40) + gpa
    }
}

/// How large a world is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    /// Queues, each with rings of its own.
    pub queues: u16,
    /// Engines, each a thread.
    pub engines: u8,
    /// PASIDs, 0 included.
    pub pasids: u32,
    /// How long engines look for work before they sleep, µs; `None` as everywhere.
    pub spin_us: Option<u32>,
}

impl Default for Size {
    fn default() -> Self {
        Self { queues: 4, engines: 1, pasids: 2, spin_us: None }
    }
}

/// A running host and this thread's side of it.
#[derive(Debug)]
pub(crate) struct World {
    // Dropped in this order: connections, then the threads behind them, then the memory that those use.
    unit: SocketClient,
    /// The accelerator's socket.
    pub function: SocketClient,
    host: Host,
    doorbells: Shared,
    /// Guest memory.
    pub memory: Shared,
    _folder: tempfile::TempDir,
    size: Size,
    /// Next descriptor of the invalidation queue, bytes; and the status of the last wait.
    tail: Cell<u64>,
    waits: Cell<u32>,
    used: RefCell<Vec<bool>>,
}

impl World {
    /// Starts a backend and brings everything up. Errors: the system's.
    pub(crate) fn new(size: Size, processors: &Processors) -> anyhow::Result<Self> {
        let (memory, file) = Shared::create(MEMORY)?;
        let mut tables = Tables::new(&memory, TABLES);
        tables.attach(FUNCTION, size.pasids);
        for pages in Pages::ALL {
            let mapped = if pages == Pages::Huge { 0..MEMORY } else { RINGS..DATA.end };
            let len = mapped.end - mapped.start;
            tables.map(pages.address(mapped.start), mapped.start, len, pages.size_log2());
        }
        let root = tables.finish();

        let folder = tempfile::tempdir().context("cannot make a folder for the sockets")?;
        let config = host_config(size, folder.path().to_owned());
        let host = processors.apart(size.engines, || Host::start(&config, drop))?;
        let connect = |bdf: Bdf| {
            let path = socket_path(folder.path(), bdf);
            let client =
                SocketClient::connect(&path).with_context(|| format!("cannot connect to {}", path.display()))?;
            client.negotiate(r#"{"capabilities":{}}"#)?;
            client.map(0, MEMORY, file.as_fd())?;
            anyhow::Ok(client)
        };
        let (unit, function) = (connect(UNIT)?, connect(FUNCTION)?);
        let doorbells = Shared::map(&function.region_file(BAR_DOORBELLS)?, u64::from(size.queues) * DOORBELL_STRIDE)?;
        let used = RefCell::new(vec![false; size.queues.into()]);
        let (tail, waits) = (Cell::new(0), Cell::new(0));
        let world = Self { unit, function, host, doorbells, memory, _folder: folder, size, tail, waits, used };
        world.start_unit(root)?;
        world.start_function()?;
        Ok(world)
    }

    /// Commands that all functions got so far: each access that would trap in a guest is one.
    #[cfg(test)]
    pub(crate) fn commands(&self) -> u64 {
        self.host.snapshot().commands
    }

    /// Scalable mode, queued invalidation, translation (VT-d 4.1 §11.4.4.1).
    fn start_unit(&self, root: u64) -> anyhow::Result<()> {
        const ROOT_POINTER: u32 = 1 << 30;
        const QUEUED: u32 = 1 << 26;
        const TRANSLATE: u32 = 1 << 31;
        let write = |register, data: &[u8]| self.unit.write(BAR_UNIT, register, data);
        // DW: 256-bit descriptors. QS 0: one page.
        write(offset::IQA, &(QUEUE | 1 << 11).to_le_bytes())?;
        // TTM 1: scalable mode.
        write(offset::RTADDR, &(root | 1 << 10).to_le_bytes())?;
        for command in [ROOT_POINTER, QUEUED, QUEUED | TRANSLATE] {
            write(offset::GCMD, &command.to_le_bytes())?;
        }
        let status = u32::from_le_bytes(self.unit.read(BAR_UNIT, offset::GSTS)?);
        ensure!(status & (QUEUED | TRANSLATE) == QUEUED | TRANSLATE, "the unit does not start: GSTS is {status:#x}");
        Ok(())
    }

    /// What a driver and the kernel write before a function works.
    fn start_function(&self) -> anyhow::Result<()> {
        let config = |at: u64, value: u16| self.function.write(region::CONFIG, at, &value.to_le_bytes());
        let capability = |id: u16| -> anyhow::Result<u64> {
            self.function
                .extended_capability(id)?
                .with_context(|| format!("the function has no extended capability {id:#x}"))
        };
        let (ats, pasid) = (capability(extended_capability::ATS)?, capability(extended_capability::PASID)?);
        // Memory space and bus mastering.
        config(header::COMMAND.into(), 6)?;
        config(pasid + u64::from(pcie::pasid::CONTROL), 1)?;
        config(ats + u64::from(pcie::ats::CONTROL), 1 << 15)?;
        Ok(self.function.write(BAR_REGISTERS, regs::CONTROL, &1u32.to_le_bytes())?)
    }

    /// Engines of the function.
    pub(crate) fn engines(&self) -> u8 {
        self.size.engines
    }

    /// Opens a queue, once, with rings of `1 << log2` entries: of a process where `user` names one, else the
    /// kernel's, whose descriptors name a PASID each. It raises vector 0 where a descriptor asks for it. Returns
    /// where the submission ring and the completion ring begin.
    pub(crate) fn open(&self, number: u16, log2: u8, user: Option<u32>) -> anyhow::Result<(u64, u64)> {
        let room = (64u64 + 32) << log2;
        ensure!(room <= RING_ROOM, "rings of 2^{log2} entries need {room:#x} bytes, and there are {RING_ROOM:#x}");
        ensure!(
            !std::mem::replace(&mut self.used.borrow_mut()[usize::from(number)], true),
            "queue {number} is already open"
        );
        let submissions = RINGS + u64::from(number) * RING_ROOM;
        let completions = submissions + (64 << log2);
        let write = |register: u64, data: &[u8]| {
            let at = regs::QUEUES + u64::from(number) * regs::QUEUE_STRIDE + register;
            self.function.write(BAR_REGISTERS, at, data)
        };
        let size = QueueSize::new().with_sq_log2(log2).with_cq_log2(log2);
        let owner = user.map_or(QueuePasid::new(), |pasid| QueuePasid::new().with_pasid(pasid).with_user(true));
        let vector = QueueVector::new().with_vector(0).with_enable(true);
        for at in (submissions..submissions + room).step_by(8) {
            self.memory.word(at).store(0, Ordering::Relaxed);
        }
        write(regs::QUEUE_SQ_BASE, &Pages::Small.address(submissions).to_le_bytes())?;
        write(regs::QUEUE_CQ_BASE, &Pages::Small.address(completions).to_le_bytes())?;
        write(regs::QUEUE_SIZE, &size.into_bits().to_le_bytes())?;
        write(regs::QUEUE_PASID, &owner.into_bits().to_le_bytes())?;
        write(regs::QUEUE_VECTOR, &vector.into_bits().to_le_bytes())?;
        let page = u64::from(number) * DOORBELL_STRIDE;
        for word in [doorbell::SQ_TAIL, doorbell::CQ_HEAD] {
            self.doorbells.half(page + word).store(0, Ordering::Release);
        }
        write(regs::QUEUE_CONTROL, &1u32.to_le_bytes())?;
        self.check_queue(number)?;
        Ok((submissions, completions))
    }

    /// A queue that stopped by itself says why.
    pub(crate) fn check_queue(&self, number: u16) -> anyhow::Result<()> {
        let at = regs::QUEUES + u64::from(number) * regs::QUEUE_STRIDE;
        let bits = self.function.read_register(BAR_REGISTERS, at + regs::QUEUE_STATUS)?;
        let status = QueueStatus::from_bits(bits);
        ensure!(status.enabled() && !status.halted(), "queue {number} stopped: {status:?}");
        Ok(())
    }

    /// A word of a queue's doorbell page.
    pub(crate) fn doorbell(&self, queue: u16, word: u64) -> &std::sync::atomic::AtomicU32 {
        self.doorbells.half(u64::from(queue) * DOORBELL_STRIDE + word)
    }

    /// The trapped write that wakes a queue's engine.
    pub(crate) fn wake(&self, queue: u16) -> anyhow::Result<()> {
        let half = bar_doorbells_size(self.size.queues.into()) / 2;
        Ok(self.function.write(BAR_DOORBELLS, half + u64::from(queue) * DOORBELL_STRIDE, &0u32.to_le_bytes())?)
    }

    /// Puts what Linux sends for one unmapped page of a bound process into the invalidation queue: IOTLB, device TLB,
    /// and a wait that writes its status. Tells the unit with [`Announced::tell`].
    pub(crate) fn announce(&self, iova: u64) -> Announced<'_> {
        let frame = iova >> 12;
        let granularity = pasid_iotlb_granularity::PAGE;
        let iotlb = PasidIotlb::new().with_granularity(granularity).with_domain_id(DOMAIN).with_pasid(PASID);
        let page = InvalidateAddress::new().with_invalidation_hint(true).with_frame(frame);
        let device = PasidDeviceTlb::new().with_source_id(FUNCTION.0).with_pasid(PASID);
        let device_page = PasidDeviceTlbAddress::new().with_frame(frame);
        let number = self.waits.get().wrapping_add(1);
        self.waits.set(number);
        let wait = Wait::new().with_status_write(true).with_fence(true).with_status_data(number);
        for (kind, low, high) in [
            (descriptor_type::PASID_IOTLB, iotlb.into_bits(), page.into_bits()),
            (descriptor_type::PASID_DEVICE_TLB, device.into_bits(), device_page.into_bits()),
            (descriptor_type::WAIT, wait.into_bits(), STATUS),
        ] {
            let at = QUEUE + self.tail.get();
            self.memory.word(at).store(low | u64::from(kind), Ordering::Relaxed);
            self.memory.word(at + 8).store(high, Ordering::Relaxed);
            self.tail.set((self.tail.get() + 32) % 0x1000);
        }
        Announced { world: self, number }
    }
}

/// A host with one function.
fn host_config(size: Size, socket_dir: PathBuf) -> HostConfig {
    let function = AcceleratorConfig {
        name: "sva0".into(),
        bdf: FUNCTION,
        ats: true,
        pri: true,
        pasid_bits: 19,
        queues: size.queues,
        engines: size.engines,
        vectors: 4,
        device_memory: 0,
        cpus: Vec::new(),
        spin_us: size.spin_us.unwrap_or(SPIN_US),
    };
    let unit = UnitConfig::default();
    HostConfig {
        iommus: vec![IommuConfig { bdf: UNIT, unit, audit_limit_ms: None, accelerators: vec![function] }],
        socket_dir,
        timeout_scale: 1,
    }
}

/// Descriptors in the invalidation queue that the unit was not told of.
#[derive(Debug)]
pub(crate) struct Announced<'w> {
    world: &'w World,
    number: u32,
}

impl Announced<'_> {
    /// Writes the queue's tail, as the socket thread does when the guest's write has come, and spins until the wait's
    /// status is in memory. Errors: it never comes.
    pub(crate) fn tell(self) -> anyhow::Result<()> {
        self.world.host.write_unit_register(offset::IQT, &self.world.tail.get().to_le_bytes());
        let status = self.world.memory.half(STATUS);
        if status.load(Ordering::Acquire) == self.number {
            return Ok(());
        }
        let (since, mut spin) = (Instant::now(), Spin::default());
        while status.load(Ordering::Acquire) != self.number {
            ensure!(!spin.once() || since.elapsed() < PATIENCE, "an invalidation was not completed in time");
        }
        Ok(())
    }
}
