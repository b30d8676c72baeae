//! The driver's half of an accelerator: bring-up, queues and their rings.
use std::convert::Infallible;
use std::sync::Arc;

use svadev_accelerator::{FunctionShared, Progress};
use svadev_fabric::{Bdf, Pasid};
use svadev_host::{AcceleratorState, HostEngine, MachineFunction};
use svadev_spec::device::{
    BAR_DOORBELLS, BAR_REGISTERS, Command, CommandStatus, DOORBELL_STRIDE, QueuePasid, QueueSize, QueueStatus,
    QueueVector, Status, bar_doorbells_size, command, doorbell, regs,
};
use svadev_spec::pcie::{self, PageRequestControl, capability, extended_capability};
use svadev_vfio_user::client::config;

use crate::excuse;
use crate::log::Log;
use crate::mutant::Mutant;
use crate::platform::{EngineState, Maps, Simulated};
use crate::queues::{QUEUES, RING_LOG2, VECTORS};
use crate::rng::Rng;
use crate::vmm::{Parts, Vmm};

/// The thread of one engine.
struct Thread {
    state: Arc<EngineState>,
    until_ns: Option<u64>,
}

/// The driver's half of a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Queue {
    /// The process it belongs to; `None` for a kernel queue.
    pub user: Option<Pasid>,
    /// Addresses of the rings, in the process or for the driver's own DMA.
    pub rings: (u64, u64),
    /// Enabled, as far as the driver knows.
    pub on: bool,
    /// One past the last descriptor written.
    pub tail: u32,
    /// The next completion to read.
    pub head: u32,
}

/// A function and the threads of its engines.
pub struct Accelerator {
    /// Its requester ID.
    pub bdf: Bdf,
    /// Its queues.
    pub queues: [Queue; QUEUES],
    /// Most page requests outstanding, as the kernel will set it.
    pub allocation: u32,
    /// A reset is under way: nothing is submitted.
    pub resetting: bool,
    /// How often the reset that is under way may be asked for again.
    pub resets_left: u8,
    /// Page request groups that will never be answered: their share of the allocation is gone.
    pub lost_groups: u32,
    /// Answers of *failure* after which page requests were not enabled again.
    pub failing: u32,
    /// Somebody waits for COMMAND.
    pub command_taken: bool,
    /// Its queues whose completions are read only after an interrupt; the others are polled.
    pub interrupt_driven: [bool; QUEUES],
    /// Its VMM.
    pub vmm: Vmm,
    engines: Vec<HostEngine<Simulated>>,
    threads: Vec<Thread>,
}

impl std::fmt::Debug for Accelerator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Accelerator").field("bdf", &self.bdf).finish_non_exhaustive()
    }
}

impl Accelerator {
    /// A function at reset, with a VMM that is connected to it. `wired`: every register access is a message.
    pub fn new(
        function: MachineFunction<Simulated>,
        allocation: u32,
        (maps, memory): (&Arc<Maps>, u64),
        wired: bool,
        mut rng: Rng,
        log: &Arc<Log>,
        mutant: Option<Mutant>,
    ) -> Self {
        let MachineFunction { device, server, engines, wakers, .. } = function;
        let threads = wakers.into_iter().map(|state| Thread { state, until_ns: None }).collect();
        let bdf = device.shared().bdf();
        let interrupt_driven = std::array::from_fn(|_| rng.chance(500));
        let parts = Parts { device, server, maps: Arc::clone(maps), memory, wired };
        let vmm = Vmm::new(parts, rng, Arc::clone(log), mutant);
        Self {
            bdf,
            queues: [Queue::default(); QUEUES],
            allocation,
            resetting: false,
            resets_left: 0,
            lost_groups: 0,
            failing: 0,
            command_taken: false,
            interrupt_driven,
            vmm,
            engines,
            threads,
        }
    }

    /// What the IOMMU's side calls.
    pub fn shared(&self) -> &Arc<FunctionShared> {
        self.vmm.device().shared()
    }

    /// Why work may fail that is submitted to a queue now, whatever it is: bits of [`excuse`].
    pub fn standing_excuses(&self, queue: usize) -> u8 {
        let failing = if self.failing > 0 { excuse::FAILED } else { 0 };
        let starved = if self.is_starved() { excuse::TIMEOUT } else { 0 };
        excuse::in_queue(queue, failing | starved)
    }

    /// Whether groups that will never be answered may have taken all of the allocation.
    pub fn is_starved(&self) -> bool {
        self.lost_groups * u32::from(self.shared().settings().group_pages) >= self.allocation
    }

    /// Engines.
    pub fn engines(&self) -> usize {
        self.threads.len()
    }

    /// One turn of an engine's thread; `sleepy` lets it go to sleep where it finds nothing to do. Whether it did
    /// anything.
    pub fn turn(&mut self, engine: usize, now_ns: u64, sleepy: bool) -> bool {
        self.vmm.turn();
        let (thread, engine) = (&mut self.threads[engine], &mut self.engines[engine]);
        let woken = thread.state.take_wake();
        let due = thread.until_ns.is_some_and(|until| now_ns >= until);
        if thread.state.is_asleep() && !woken && !due {
            return false;
        }
        thread.state.begin_turn();
        let worked = match engine.run(now_ns) {
            Progress::Worked => true,
            Progress::Idle { until_ns } => {
                thread.until_ns = until_ns;
                if sleepy && engine.park() {
                    thread.state.sleep();
                }
                false
            }
        };
        self.vmm.after_turn();
        worked
    }

    fn config_read<const N: usize>(&mut self, at: u64) -> Result<[u8; N], Infallible> {
        let mut data = [0; N];
        self.vmm.config_read(at, &mut data);
        Ok(data)
    }

    fn extended_capability(&mut self, id: u16) -> u64 {
        let Ok(at) = config::extended_capability(id, |at| self.config_read(at));
        at.expect("the function has the capability")
    }

    fn config_write16(&mut self, at: u64, value: u16) {
        self.vmm.config_write(at, &value.to_le_bytes());
    }

    /// What the kernel and the driver write before anything works: PASID before ATS, the allocation before page
    /// requests.
    pub fn bring_up(&mut self) {
        let pasid = self.extended_capability(extended_capability::PASID) + u64::from(pcie::pasid::CONTROL);
        let ats = self.extended_capability(extended_capability::ATS) + u64::from(pcie::ats::CONTROL);
        self.start_bus_mastering();
        self.vmm.enable_vectors(VECTORS);
        self.config_write16(pasid, pcie::PasidControl::new().with_enable(true).into_bits());
        self.start_page_requests();
        self.config_write16(ats, pcie::AtsControl::new().with_enable(true).into_bits());
        self.write32(regs::CONTROL, 1);
    }

    /// Lets the queues run.
    pub(crate) fn start(&mut self) {
        self.write32(regs::CONTROL, 1);
    }

    fn start_page_requests(&mut self) {
        let pri = self.extended_capability(extended_capability::PRI);
        let allocation = self.allocation.to_le_bytes();
        self.vmm.config_write(pri + u64::from(pcie::pri::OUTSTANDING_ALLOCATION), &allocation);
        let on = PageRequestControl::new().with_enable(true);
        self.config_write16(pri + u64::from(pcie::pri::CONTROL), on.into_bits());
    }

    /// Page requests: off, on; with `reset`, what is outstanding is forgotten between.
    pub fn restart_page_requests(&mut self, reset: bool) {
        let control = self.extended_capability(extended_capability::PRI) + u64::from(pcie::pri::CONTROL);
        self.config_write16(control, 0);
        if reset {
            self.config_write16(control, PageRequestControl::new().with_reset(true).into_bits());
        }
        self.start_page_requests();
    }

    /// The engines stop between two turns, and the VMM takes what they sent. Every command is answered then.
    pub fn pause(&mut self, now_ns: u64) {
        self.vmm.deliver_all();
        let Self { vmm, engines, threads, .. } = self;
        threads.iter().for_each(|thread| thread.state.begin_turn());
        vmm.device().pause(engines, now_ns);
        vmm.settle();
    }

    /// The state of a function that is paused.
    pub fn save(&self) -> AcceleratorState {
        self.vmm.device().save(&self.engines)
    }

    /// Goes on with a function that was restored from this one's state.
    pub fn replace(&mut self, function: MachineFunction<Simulated>, maps: &Arc<Maps>) {
        let MachineFunction { device, server, engines, wakers, .. } = function;
        self.engines = engines;
        self.threads = wakers.into_iter().map(|state| Thread { state, until_ns: None }).collect();
        self.vmm.replace(device, server, Arc::clone(maps));
    }

    /// Turns bus mastering off, as a driver does before it resets its device.
    pub fn stop_bus_mastering(&mut self) {
        self.vmm.set_command(pcie::Command::new().with_memory_space(true));
    }

    /// Turns bus mastering on again.
    pub fn start_bus_mastering(&mut self) {
        self.vmm.set_command(pcie::Command::new().with_memory_space(true).with_bus_master(true));
    }

    /// Resets the function, by the way that `way` chooses. Whether its connection ended with it.
    pub fn reset_by(&mut self, way: u64) -> bool {
        match way {
            0 => self.vmm.reset(),
            1 => {
                self.vmm.reconnect();
                return true;
            }
            // PCIe 6.0 §6.6.2.
            _ => {
                let Ok(at) = config::capability(capability::PCI_EXPRESS, |at| self.config_read(at));
                let at = at.expect("every function has it") + u64::from(pcie::pci_express::DEVICE_CONTROL);
                self.vmm.function_level_reset(at);
            }
        }
        false
    }

    /// Whether completions of a queue are to be read now: one that is driven by interrupts waits for its vector.
    pub fn is_reaped(&mut self, queue: usize) -> bool {
        self.vmm.take_fired(queue) || !self.interrupt_driven[queue]
    }

    pub(crate) fn read32(&mut self, at: u64) -> u32 {
        let mut data = [0; 4];
        self.vmm.read(BAR_REGISTERS, at, &mut data);
        u32::from_le_bytes(data)
    }

    pub(crate) fn write32(&mut self, at: u64, value: u32) {
        self.vmm.write(BAR_REGISTERS, at, &value.to_le_bytes());
    }

    pub(crate) fn write64(&mut self, at: u64, value: u64) {
        self.vmm.write(BAR_REGISTERS, at, &value.to_le_bytes());
    }

    /// STATUS.busy.
    pub fn is_busy(&mut self) -> bool {
        Status::from_bits(self.read32(regs::STATUS)).busy()
    }

    /// Starts `ABORT_PASID`; no command may be under way.
    pub fn abort(&mut self, pasid: Pasid) {
        assert!(!self.is_command_busy(), "one command at a time");
        let command = Command::new().with_opcode(command::ABORT_PASID).with_pasid(pasid.get());
        self.write64(regs::COMMAND, command.into_bits());
    }

    /// COMMAND_STATUS.busy.
    pub fn is_command_busy(&mut self) -> bool {
        CommandStatus::from_bits(self.read32(regs::COMMAND_STATUS)).busy()
    }

    fn register(queue: usize, register: u64) -> u64 {
        regs::QUEUES + queue as u64 * regs::QUEUE_STRIDE + register
    }

    /// Enables a queue with empty rings.
    pub fn enable(&mut self, queue: usize, user: Option<Pasid>, rings: (u64, u64)) {
        let size = QueueSize::new().with_sq_log2(RING_LOG2).with_cq_log2(RING_LOG2);
        let owner = user.map_or(QueuePasid::new(), |p| QueuePasid::new().with_pasid(p.get()).with_user(true));
        let vector = QueueVector::new().with_vector(u8::try_from(queue).expect("few queues")).with_enable(true);
        self.write64(Self::register(queue, regs::QUEUE_SQ_BASE), rings.0);
        self.write64(Self::register(queue, regs::QUEUE_CQ_BASE), rings.1);
        self.write32(Self::register(queue, regs::QUEUE_SIZE), size.into_bits());
        self.write32(Self::register(queue, regs::QUEUE_PASID), owner.into_bits());
        self.write32(Self::register(queue, regs::QUEUE_VECTOR), vector.into_bits());
        self.store(queue, doorbell::SQ_TAIL, 0);
        self.store(queue, doorbell::CQ_HEAD, 0);
        self.queues[queue] = Queue { user, rings, on: true, tail: 0, head: 0 };
        self.write32(Self::register(queue, regs::QUEUE_CONTROL), 1);
    }

    /// Begins to disable a queue.
    pub fn disable(&mut self, queue: usize) {
        self.queues[queue].on = false;
        self.write32(Self::register(queue, regs::QUEUE_CONTROL), 0);
    }

    /// QUEUE_STATUS.
    pub fn queue_status(&mut self, queue: usize) -> QueueStatus {
        QueueStatus::from_bits(self.read32(Self::register(queue, regs::QUEUE_STATUS)))
    }

    /// A word of a queue's doorbell page.
    pub fn load(&mut self, queue: usize, word: u64) -> u32 {
        let mut data = [0; 4];
        self.vmm.read(BAR_DOORBELLS, queue as u64 * DOORBELL_STRIDE + word, &mut data);
        u32::from_le_bytes(data)
    }

    fn store(&mut self, queue: usize, word: u64, value: u32) {
        self.vmm.write(BAR_DOORBELLS, queue as u64 * DOORBELL_STRIDE + word, &value.to_le_bytes());
    }

    /// Rings: `SQ_TAIL`, and the wake page where the engine may sleep.
    pub fn ring(&mut self, queue: usize) {
        self.store(queue, doorbell::SQ_TAIL, self.queues[queue].tail);
        self.wake_if_armed(queue);
    }

    /// Says how far completions were read.
    pub fn consume(&mut self, queue: usize) {
        self.store(queue, doorbell::CQ_HEAD, self.queues[queue].head);
        self.wake_if_armed(queue);
    }

    fn wake_if_armed(&mut self, queue: usize) {
        if self.load(queue, doorbell::ARMED) != 0 {
            let pages = bar_doorbells_size(u32::try_from(QUEUES).expect("few")) / 2;
            self.vmm.write(BAR_DOORBELLS, pages + queue as u64 * DOORBELL_STRIDE, &[1; 4]);
        }
    }
}
