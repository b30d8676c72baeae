//! An accelerator's PCI function on its socket's thread, and what its engines need of the process around them.
use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};

use nix::errno::Errno;
use svadev_accelerator::{Function, FunctionPorts, FunctionShared, FunctionState};
use svadev_fabric::InvalidateAck;
use svadev_mutation::mutant;
use svadev_pci::ConfigEffect;
use svadev_spec::device::{BAR_DEVICE_MEMORY, BAR_DOORBELLS, DOORBELL_STRIDE};
use svadev_spec::vfio_user::{irq, region};
use svadev_vfio_user::{
    Device, DeviceInfo, DmaMap, DmaUnmap, IrqInfo, RegionInfo, RegionMmap, ReplyToken, ResetReply, SetIrqs, SparseArea,
    UnmapReply,
};

use crate::bus::{Bus, HostEngine};
use crate::events::{Events, HostEvent};
use crate::interrupts::VectorState;
use crate::link::Link;
use crate::platform::{GuestMaps, Platform, Wake};
use crate::releases::Releases;

/// The effects of a function, called by its threads. None of them blocks.
pub(crate) struct Ports<P: Platform> {
    link: Arc<Link>,
    wakers: Vec<Arc<P::Waker>>,
    releases: Releases<P::Maps>,
    /// Replies to resets, in the order in which they were asked for; engines finish them in that order.
    resets: Mutex<VecDeque<Option<ReplyToken>>>,
}

impl<P: Platform> Ports<P> {
    /// Ports of a function with these engines.
    pub(crate) fn new(link: Arc<Link>, wakers: Vec<Arc<P::Waker>>) -> Self {
        Self { releases: Releases::new(link.sender.clone()), link, wakers, resets: Mutex::default() }
    }
}

impl<P: Platform> FunctionPorts for Ports<P> {
    fn interrupt(&self, vector: u16) {
        let vector = if mutant!(InterruptOnTheNextVector) { vector + 1 } else { vector };
        self.link.interrupts.raise(vector);
    }

    fn interrupt_pending(&self, vector: u16) -> bool {
        self.link.interrupts.is_pending(vector)
    }

    fn wake(&self, engine: usize) {
        self.wakers[engine].wake();
    }

    fn memory_released(&self, token: u64) {
        self.releases.release(token);
    }

    fn reset_done(&self) {
        // Engines may have raised vectors until now.
        if !mutant!(ResetKeepsPendingVectors) {
            self.link.interrupts.clear_pending();
        }
        let mut resets = self.resets.lock().expect("no holder panics");
        let reply = if mutant!(YoungestResetIsAnswered) { resets.pop_back() } else { resets.pop_front() };
        drop(resets);
        if let Some(reply) = reply.flatten() {
            self.link.sender.complete(reply, Ok(0));
        }
    }
}

/// A function and its interrupts as a plain value, to be saved and restored. Mappings, eventfds and what a VMM waits
/// for belong to its connection.
#[derive(Clone, Debug)]
pub struct AcceleratorState {
    function: FunctionState,
    vectors: Box<[VectorState]>,
}

/// Files that a VMM maps into the guest.
#[derive(Debug)]
pub(crate) struct Files {
    /// Behind the doorbell pages.
    pub(crate) doorbells: Option<OwnedFd>,
    /// Behind device memory.
    pub(crate) device_memory: Option<OwnedFd>,
}

/// The function, on its socket's thread.
pub struct Accelerator<P: Platform> {
    function: Function,
    ports: Arc<Ports<P>>,
    maps: P::Maps,
    files: Files,
    doorbell_area: [SparseArea; 1],
    memory_area: [SparseArea; 1],
    events: Events,
    bus: Arc<Bus<P>>,
    connected: bool,
}

impl<P: Platform> Accelerator<P> {
    /// `files` are what a VMM may map, `maps` changes its view of guest memory.
    pub(crate) fn new(
        function: Function,
        ports: Arc<Ports<P>>,
        maps: P::Maps,
        files: Files,
        events: Events,
        bus: Arc<Bus<P>>,
    ) -> Self {
        let settings = function.shared().settings();
        let (size, memory) = (u64::from(settings.queues) * DOORBELL_STRIDE, settings.device_memory);
        Self {
            function,
            ports,
            maps,
            files,
            doorbell_area: [SparseArea { offset: 0, size }],
            memory_area: [SparseArea { offset: 0, size: memory }],
            events,
            bus,
            connected: false,
        }
    }

    /// The function itself, for those who look at its registers and configuration space.
    pub fn function(&self) -> &Function {
        &self.function
    }

    /// What other threads may call of the function.
    pub fn shared(&self) -> &Arc<FunctionShared> {
        self.function.shared()
    }

    /// Stops the engines between two turns: what they were told is done, and they hold no translation. Every function
    /// of a machine is paused before the first is saved.
    /// `now_ns` is as for [`Engine::run`](svadev_accelerator::Engine::run).
    pub fn pause(&self, engines: &mut [HostEngine<P>], now_ns: u64) {
        self.function.pause(engines, now_ns);
    }

    /// The state of a function that is paused. Resets and unmaps that were asked for are answered by now.
    pub fn save(&self, engines: &[HostEngine<P>]) -> AcceleratorState {
        AcceleratorState { function: self.function.save(engines), vectors: self.ports.link.interrupts.save() }
    }

    /// Goes on with a state that was saved from a function of the same settings, before a VMM connects. This function
    /// and its engines must be new, and its unit must have its state already.
    pub fn restore(&mut self, engines: &mut [HostEngine<P>], state: &AcceleratorState) {
        let AcceleratorState { function, vectors } = state;
        self.function.restore(engines, function);
        self.ports.link.interrupts.restore(vectors);
        self.follow_config();
    }

    /// Holds memory that left the map until the engines have let go of it.
    fn release(&self, retired: <P::Maps as GuestMaps>::Retired, reply: Option<ReplyToken>) -> InvalidateAck {
        // Held first: the last engine may release it before `memory_changed` returns.
        let token = self.ports.releases.hold(retired, reply);
        let ack = self.function.shared().memory_changed(token);
        if ack == InvalidateAck::Done || mutant!(MemoryReleasedEarly) {
            self.ports.releases.release(token);
        }
        ack
    }

    fn start_reset(&mut self, reply: Option<ReplyToken>) {
        self.resets().push_back(reply);
        self.function.reset();
        self.follow_config();
    }

    /// Writes configuration space. A function level reset is finished by the engines, and `reset_done` may be called
    /// before this returns. So its place in the order of resets is taken first, and given back if there was no reset.
    fn config_write(&mut self, offset: u64, data: &[u8]) {
        self.resets().push_back(None);
        let effects = self.function.config_write(offset, data);
        if mutant!(FlrTakesNoPlace) || !effects.into_iter().any(|effect| effect == ConfigEffect::Flr) {
            self.resets().pop_back();
        }
        self.follow_config();
    }

    /// Device memory, for a VMM that does not map it.
    fn read_memory(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(file) = &self.files.device_memory {
            // Beyond the end there is nothing, which reads zero.
            let _ = nix::sys::uio::pread(file, data, i64::try_from(offset).unwrap_or(i64::MAX));
        }
    }

    fn write_memory(&self, offset: u64, data: &[u8]) {
        if let Some(file) = &self.files.device_memory {
            // The file is sealed: nothing grows it.
            let _ = nix::sys::uio::pwrite(file, data, i64::try_from(offset).unwrap_or(i64::MAX));
        }
    }

    fn resets(&self) -> MutexGuard<'_, VecDeque<Option<ReplyToken>>> {
        self.ports.resets.lock().expect("no holder panics")
    }

    /// Carries out what configuration space changed outside of the function: bus mastering for interrupts, and for the
    /// auditor that ATS is off, so that no translation is in use.
    fn follow_config(&self) {
        if !self.function.config().ats().enable() {
            self.bus.audit_forget(self.function.shared().bdf());
        }
        match self.ports.link.set_bus_master(self.function.config().command().bus_master()) {
            Some(true) if !mutant!(InterruptsNotRetried) => self.bus.retry_interrupts(),
            Some(false) if !mutant!(InterruptsNotRepeated) => self.bus.repeat_interrupts(),
            _ => {}
        }
    }
}

impl<P: Platform> Device for Accelerator<P> {
    fn device_info(&self) -> DeviceInfo {
        DeviceInfo::pci(true)
    }

    fn region(&self, index: u32) -> RegionInfo<'_> {
        match index {
            region::CONFIG => RegionInfo::trapped(svadev_spec::pcie::CONFIG_SPACE_SIZE as u64),
            BAR_DOORBELLS => {
                let file = self.files.doorbells.as_ref();
                let mmap = file.map(|file| RegionMmap { fd: file.as_fd(), offset: 0, areas: &self.doorbell_area });
                RegionInfo { mmap, ..RegionInfo::trapped(self.function.bar_size(index)) }
            }
            BAR_DEVICE_MEMORY => match &self.files.device_memory {
                Some(file) => {
                    let mmap = Some(RegionMmap { fd: file.as_fd(), offset: 0, areas: &self.memory_area });
                    RegionInfo { mmap, ..RegionInfo::trapped(self.function.bar_size(index)) }
                }
                None => RegionInfo::ABSENT,
            },
            _ => match self.function.bar_size(index) {
                0 => RegionInfo::ABSENT,
                size => RegionInfo::trapped(size),
            },
        }
    }

    fn irq(&self, index: u32) -> IrqInfo {
        if index != irq::MSIX {
            return IrqInfo::default();
        }
        let count = u32::from(self.function.shared().settings().vectors);
        // Vectors come and go one by one. If they did not, a VMM would disable all of them to add one. Masking is
        // offered because it is carried out; QEMU 11.1 masks by other means.
        IrqInfo { count, eventfd: true, maskable: true, automasked: false, noresize: false }
    }

    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        match region {
            region::CONFIG => self.function.config_read(offset, data),
            BAR_DEVICE_MEMORY => self.read_memory(offset, data),
            bar => self.function.bar_read(bar, offset, data),
        }
        Ok(())
    }

    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), Errno> {
        match region {
            region::CONFIG => self.config_write(offset, data),
            BAR_DEVICE_MEMORY => self.write_memory(offset, data),
            bar => self.function.bar_write(bar, offset, data),
        }
        Ok(())
    }

    fn set_irqs(&mut self, set: SetIrqs<'_>) -> Result<(), Errno> {
        if set.index != irq::MSIX {
            return Err(Errno::EINVAL);
        }
        self.ports.link.interrupts.set(set)
    }

    fn dma_map(&mut self, map: DmaMap) -> Result<(), Errno> {
        if !std::mem::replace(&mut self.connected, true) {
            self.events.send(HostEvent::Connected(self.function.shared().bdf()));
        }
        self.maps.map(map)
    }

    fn dma_unmap(&mut self, range: DmaUnmap, token: ReplyToken) -> UnmapReply {
        match self.maps.unmap(range) {
            Err(errno) => UnmapReply::Done(Err(errno)),
            Ok(retired) => {
                // Answered by `Releases` in either case.
                let _ = self.release(retired, Some(token));
                UnmapReply::Later
            }
        }
    }

    fn reset(&mut self, token: ReplyToken) -> ResetReply {
        self.start_reset(Some(token));
        if !mutant!(ResetKeepsVectors) {
            self.ports.link.interrupts.clear();
        }
        ResetReply::Later
    }

    fn disconnected(&mut self) {
        if !mutant!(DisconnectKeepsState) {
            self.start_reset(None);
        }
        if !mutant!(DisconnectKeepsVectors) {
            self.ports.link.interrupts.clear();
        }
        if !mutant!(DisconnectKeepsMemory) {
            let _ = self.release(self.maps.unmap_all(), None);
        }
        self.connected = false;
        self.events.send(HostEvent::Disconnected(self.function.shared().bdf()));
    }
}
