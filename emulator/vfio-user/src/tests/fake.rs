//! A device with every kind of region and interrupt, which writes down what it is asked.
use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc;

use nix::errno::Errno;
use svadev_spec::vfio_user::{SparseArea, irq, region};

use super::memfd;
use crate::{
    Action, Data, Device, DeviceInfo, DmaMap, DmaUnmap, IrqInfo, RegionInfo, RegionMmap, ReplyToken, ResetReply,
    Sender, SetIrqs, UnmapReply,
};

/// A call of the device, as far as tests look at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Read(u32, u64, usize),
    Write(u32, u64, Vec<u8>),
    /// Index, start, count, action, and what came with it.
    Irqs(u32, u32, u32, Action, IrqData),
    Map {
        gpa: u64,
        size: u64,
        offset: u64,
        read: bool,
        write: bool,
        fd: bool,
    },
    Unmap(DmaUnmap),
    Reset,
    Disconnected,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum IrqData {
    None,
    Bool(Vec<u8>),
    /// Which of them are there.
    EventFd(Vec<bool>),
}

pub(super) struct Fake {
    pub(super) calls: Vec<Call>,
    /// What the next calls that can fail return; then they succeed.
    pub(super) errors: VecDeque<Errno>,
    /// Unmaps and resets are answered later, by these.
    pub(super) defer: bool,
    pub(super) tokens: Vec<ReplyToken>,
    /// Descriptors of the last SET_IRQS and DMA_MAP.
    pub(super) fds: Vec<OwnedFd>,
    pub(super) shared_memory: OwnedFd,
    pub(super) bar0: Vec<u8>,
    pub(super) resettable: bool,
    /// Where resets are answered, if not here.
    completer: Option<mpsc::Sender<ReplyToken>>,
}

/// Of the sparse region.
pub(super) const AREAS: [SparseArea; 2] =
    [SparseArea { offset: 0, size: 0x1000 }, SparseArea { offset: 0x2000, size: 0x1000 }];
pub(super) const TRAPPED: u32 = 0;
pub(super) const READ_ONLY: u32 = 1;
pub(super) const SPARSE: u32 = 2;
pub(super) const WHOLE: u32 = 4;
pub(super) const ABSENT: u32 = 5;

impl Fake {
    pub(super) fn new() -> Self {
        Self {
            calls: Vec::new(),
            errors: VecDeque::new(),
            defer: false,
            tokens: Vec::new(),
            fds: Vec::new(),
            shared_memory: memfd(0x10000),
            bar0: vec![0; 0x1000],
            resettable: true,
            completer: None,
        }
    }

    pub(super) fn take_calls(&mut self) -> Vec<Call> {
        std::mem::take(&mut self.calls)
    }

    /// From now on, as an engine would.
    pub(super) fn complete_resets_on_a_thread(&mut self, sender: Sender) {
        let (tx, rx) = mpsc::channel();
        self.completer = Some(tx);
        std::thread::spawn(move || rx.into_iter().for_each(|token| sender.complete(token, Ok(0))));
    }

    fn outcome(&mut self) -> Result<(), Errno> {
        self.errors.pop_front().map_or(Ok(()), Err)
    }
}

impl Device for Fake {
    fn device_info(&self) -> DeviceInfo {
        DeviceInfo::pci(self.resettable)
    }

    fn region(&self, index: u32) -> RegionInfo<'_> {
        let fd = self.shared_memory.as_fd();
        match index {
            TRAPPED => RegionInfo::trapped(0x1000),
            READ_ONLY => RegionInfo { write: false, ..RegionInfo::trapped(0x100) },
            SPARSE => {
                let mmap = RegionMmap { fd, offset: 0x1000, areas: &AREAS };
                RegionInfo { mmap: Some(mmap), ..RegionInfo::trapped(0x4000) }
            }
            WHOLE => {
                let mmap = RegionMmap { fd, offset: 0x8000, areas: &[] };
                RegionInfo { mmap: Some(mmap), ..RegionInfo::trapped(0x2000) }
            }
            region::CONFIG => RegionInfo::trapped(4096),
            _ => RegionInfo::ABSENT,
        }
    }

    fn irq(&self, index: u32) -> IrqInfo {
        match index {
            irq::INTX => IrqInfo { count: 1, eventfd: true, maskable: true, automasked: true, noresize: false },
            irq::MSIX => IrqInfo { count: 4, eventfd: true, noresize: true, ..IrqInfo::default() },
            irq::ERR => IrqInfo { count: 1, ..IrqInfo::default() },
            _ => IrqInfo::default(),
        }
    }

    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        assert!(data.iter().all(|&b| b == 0), "data is zero on entry");
        self.calls.push(Call::Read(region, offset, data.len()));
        self.outcome()?;
        if region == TRAPPED {
            let offset = usize::try_from(offset).unwrap();
            data.copy_from_slice(&self.bar0[offset..offset + data.len()]);
        } else {
            data.fill(0xa5);
        }
        Ok(())
    }

    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), Errno> {
        self.calls.push(Call::Write(region, offset, data.to_vec()));
        self.outcome()?;
        if region == TRAPPED {
            let offset = usize::try_from(offset).unwrap();
            self.bar0[offset..offset + data.len()].copy_from_slice(data);
        }
        Ok(())
    }

    fn set_irqs(&mut self, set: SetIrqs<'_>) -> Result<(), Errno> {
        let SetIrqs { index, start, count, action, data } = set;
        let data = match data {
            Data::None => IrqData::None,
            Data::Bool(bytes) => IrqData::Bool(bytes.to_vec()),
            Data::EventFd(fds) => {
                let present = fds.iter().map(Option::is_some).collect();
                self.fds = fds.into_iter().flatten().collect();
                IrqData::EventFd(present)
            }
        };
        self.calls.push(Call::Irqs(index, start, count, action, data));
        self.outcome()
    }

    fn dma_map(&mut self, map: DmaMap) -> Result<(), Errno> {
        let DmaMap { gpa, size, offset, read, write, fd } = map;
        self.calls.push(Call::Map { gpa, size, offset, read, write, fd: fd.is_some() });
        self.fds = fd.into_iter().collect();
        self.outcome()
    }

    fn dma_unmap(&mut self, range: DmaUnmap, token: ReplyToken) -> UnmapReply {
        self.calls.push(Call::Unmap(range));
        if self.defer {
            self.tokens.push(token);
            return UnmapReply::Later;
        }
        let size = if let DmaUnmap::Range { size, .. } = range { size } else { 0x5000 };
        UnmapReply::Done(self.outcome().map(|()| size))
    }

    fn reset(&mut self, token: ReplyToken) -> ResetReply {
        self.calls.push(Call::Reset);
        if let Some(completer) = &self.completer {
            completer.send(token).unwrap();
            return ResetReply::Later;
        }
        if self.defer {
            self.tokens.push(token);
            return ResetReply::Later;
        }
        ResetReply::Done
    }

    fn disconnected(&mut self) {
        self.calls.push(Call::Disconnected);
    }
}
