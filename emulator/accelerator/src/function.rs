//! The accelerator as its PCI accesses see it: the socket thread's half. Nothing here waits for an engine.
use std::sync::Arc;

use svadev_endpoint::{Gate, On};
use svadev_fabric::{Pasid, Upstream};
use svadev_memory::GuestMemory;
use svadev_pci::{
    Ats, Bar, ConfigEffect, ConfigEffects, ConfigSpace, Description, Identity, MsiX, MsiXTable,
    Pasid as PasidCapability, Pri,
};
use svadev_spec::device::{
    ABI_MAJOR, ABI_MINOR, ABORT_SLOTS, AbortSlot, BAR_DEVICE_MEMORY, BAR_DOORBELLS, BAR_MSIX, BAR_REGISTERS,
    Command as CommandRegister, Control, DOORBELL_STRIDE, Features, ID_MAGIC, Limits, MAX_LENGTH, MAX_SCATTER_ENTRIES,
    MSIX_PBA_OFFSET, MSIX_TABLE_OFFSET, PCI_CLASS_ACCELERATOR, PCI_DEVICE_ID_ACCELERATOR, PCI_VENDOR_ID, QueueStatus,
    RING_LOG2, bar_doorbells_size, command, opcode, queue_error, regs,
};

use crate::doorbell::DoorbellPages;
use crate::engine::Engine;
use crate::halves::{half, set_half};
use crate::mirror_registers::MirrorRegisters;
use crate::orders::Command;
use crate::queue_config::QueueRegisters;
use crate::shared::{FunctionPorts, FunctionSettings, FunctionShared};

/// Most page requests that a function can have outstanding: as many as there are group indices (PCIe 6.0 §10.4.1).
const OUTSTANDING_PAGE_REQUESTS: u32 = 512;

/// What an accelerator function is made of. One without an IOMMU has no ATS, PRI and PASID.
fn description(settings: &FunctionSettings) -> Description {
    let FunctionSettings { queues, vectors, ats, pri, pasid_bits, untranslated, device_memory, .. } = *settings;
    let identity = Identity {
        vendor: PCI_VENDOR_ID,
        device: PCI_DEVICE_ID_ACCELERATOR,
        class: PCI_CLASS_ACCELERATOR,
        revision: ABI_MAJOR.to_le_bytes()[0],
    };
    let bar = u8::try_from(BAR_MSIX).expect("one of six");
    let device_memory = (device_memory != 0).then_some(Bar { size: device_memory, wide: true, prefetchable: true });
    let mut description = Description {
        msi_x: Some(MsiX {
            vectors: vectors.into(),
            bar,
            table_offset: MSIX_TABLE_OFFSET,
            pending_offset: MSIX_PBA_OFFSET - MSIX_TABLE_OFFSET,
        }),
        ats: (ats && !untranslated).then_some(Ats),
        pri: (pri && !untranslated).then_some(Pri { capacity: OUTSTANDING_PAGE_REQUESTS }),
        pasid: (!untranslated).then_some(PasidCapability { width: pasid_bits }),
        ..Description::new(identity)
            .with_bar(BAR_REGISTERS, Bar { size: regs::BAR_SIZE, wide: true, prefetchable: false })
            .with_bar(BAR_DOORBELLS, Bar { size: bar_doorbells_size(queues.into()), wide: true, prefetchable: false })
    };
    if let Some(bar) = device_memory {
        description = description.with_bar(BAR_DEVICE_MEMORY, bar);
    }
    description
}

/// Registers of one queue that software owns.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct QueueBank {
    registers: QueueRegisters,
    /// QUEUE_CONTROL bit 0, as written.
    enable: bool,
}

/// An accelerator function: configuration space and BARs.
#[derive(Debug)]
pub struct Function {
    pub(crate) shared: Arc<FunctionShared>,
    pub(crate) config: ConfigSpace,
    pub(crate) queues: Box<[QueueBank]>,
    /// High half of COMMAND, until the low half is written.
    pub(crate) command_high: u32,
    /// PASIDs that were last written to the abort slots.
    pub(crate) abort_pasids: [u32; ABORT_SLOTS as usize],
    pub(crate) msi_x: MsiXTable,
    pub(crate) mirror: MirrorRegisters,
}

impl Function {
    /// An accelerator and its engines. `upstream` is the IOMMU in front of it, `memory` what
    /// translations lead to; `doorbells` has a page a queue. Engine n is driven by one thread, which
    /// [`FunctionPorts::wake`] with n wakes. Panics where `settings` are out of range.
    pub fn new<M, U>(
        settings: FunctionSettings,
        memory: Arc<M>,
        upstream: Arc<U>,
        ports: Arc<dyn FunctionPorts>,
        doorbells: DoorbellPages,
    ) -> (Self, Vec<Engine<On<M, U>>>)
    where
        M: GuestMemory + ?Sized + 'static,
        U: Upstream + ?Sized,
    {
        let shared = Arc::new(FunctionShared::new(settings, ports, doorbells));
        let description = description(&settings);
        let engines = (0..usize::from(settings.engines))
            .map(|n| Engine::new(n, Arc::clone(&shared), Arc::clone(&memory), Arc::clone(&upstream)))
            .collect();
        let function = Self {
            config: ConfigSpace::new(description),
            queues: vec![QueueBank::default(); usize::from(settings.queues)].into(),
            command_high: 0,
            abort_pasids: [0; ABORT_SLOTS as usize],
            msi_x: MsiXTable::new(description.msi_x.expect("it has one")),
            mirror: MirrorRegisters::new(memory, settings.engines),
            shared,
        };
        function.apply_config();
        (function, engines)
    }

    /// What other threads may call.
    pub fn shared(&self) -> &Arc<FunctionShared> {
        &self.shared
    }

    /// Its configuration space.
    pub fn config(&self) -> &ConfigSpace {
        &self.config
    }

    /// Fills `buf` from configuration space.
    pub fn config_read(&mut self, offset: u64, buf: &mut [u8]) {
        self.show_page_request_status();
        self.config.read(offset, buf);
    }

    /// Writes configuration space and does what follows from it; the effects tell the caller what else may concern it.
    /// After [`ConfigEffect::Flr`], [`FunctionPorts::reset_done`] comes.
    pub fn config_write(&mut self, offset: u64, data: &[u8]) -> ConfigEffects {
        self.show_page_request_status();
        let effects = self.config.write(offset, data);
        for effect in effects {
            match effect {
                ConfigEffect::Flr => self.reset_registers(),
                ConfigEffect::PriReset => self.shared.endpoint().reset_page_requests(),
                _ => {}
            }
        }
        if !effects.is_empty() {
            self.apply_config();
        }
        effects
    }

    /// Conventional reset. [`FunctionPorts::reset_done`] is called when no access of before can still be under way.
    pub fn reset(&mut self) {
        self.config.reset();
        self.apply_config();
        self.reset_registers();
    }

    fn reset_registers(&mut self) {
        // Taken apart whole: a new field must be given a line here. Configuration space is reset by whoever resets it.
        let Self { shared, config: _, queues, command_high, abort_pasids, msi_x, mirror } = self;
        queues.fill(QueueBank::default());
        *command_high = 0;
        abort_pasids.fill(0);
        msi_x.reset();
        mirror.reset();
        shared.mirror().clear();
        shared.mirror().set_block(None);
        shared.reset();
    }

    /// Tells the engines what configuration space allows.
    pub(crate) fn apply_config(&self) {
        let gate = Gate {
            bus_master: self.config.command().bus_master(),
            ats: self.config.ats().enable(),
            pasid: self.config.pasid().enable(),
        };
        let (enabled, allocation) = (self.config.page_requests_enabled(), self.config.page_request_allocation());
        if let Some(memory) = self.shared.endpoint().device_memory().get() {
            memory.set_bar(self.shared.settings().number, self.config.bar_place(BAR_DEVICE_MEMORY));
        }
        self.shared.endpoint().configure(gate, enabled, allocation);
    }

    /// What the engines did becomes visible in the PRI status register when somebody looks (PCIe 6.0 §10.5.2.3).
    fn show_page_request_status(&mut self) {
        let status = self.shared.endpoint().take_page_request_status();
        if status.idle {
            self.config.set_page_requests_stopped();
        }
        if status.response_failure {
            self.config.set_response_failure();
        }
        if status.unexpected_index {
            self.config.set_unexpected_prg_index();
        }
    }

    /// Fills `data` from a BAR. Where there is nothing it reads zero.
    pub fn bar_read(&mut self, bar: u32, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match bar {
            BAR_MSIX if offset >= MSIX_TABLE_OFFSET.into() => {
                let ports = self.shared.ports();
                let pending = |vector| ports.interrupt_pending(u16::try_from(vector).unwrap_or(u16::MAX));
                self.msi_x.read(offset - u64::from(MSIX_TABLE_OFFSET), data, pending);
            }
            BAR_REGISTERS => {
                for (offset, bytes) in words_mut(offset, data) {
                    bytes.copy_from_slice(&self.read_register(offset).to_le_bytes());
                }
            }
            BAR_DOORBELLS => {
                for (offset, bytes) in words_mut(offset, data) {
                    if let Some((page, word)) = self.doorbell(offset) {
                        bytes.copy_from_slice(&self.shared.doorbells().load(page, word).to_le_bytes());
                    }
                }
            }
            _ => {}
        }
    }

    /// Writes to a BAR. What means nothing is ignored.
    pub fn bar_write(&mut self, bar: u32, offset: u64, data: &[u8]) {
        match bar {
            BAR_MSIX if offset >= MSIX_TABLE_OFFSET.into() => {
                self.msi_x.write(offset - u64::from(MSIX_TABLE_OFFSET), data);
            }
            BAR_REGISTERS => self.write_registers(offset, data),
            BAR_DOORBELLS => match self.wake_page(offset) {
                Some(queue) => self.wake(queue),
                None => {
                    for (offset, value) in words(offset, data) {
                        if let Some((page, word)) = self.doorbell(offset) {
                            self.shared.doorbells().store(page, word, value);
                        }
                    }
                }
            },
            _ => {}
        }
    }

    /// Size of a BAR in bytes, 0 where there is none.
    pub fn bar_size(&self, bar: u32) -> u64 {
        self.config.bar_size(bar)
    }

    /// Bytes of the shared half of [`BAR_DOORBELLS`].
    fn doorbell_bytes(&self) -> u64 {
        self.config.bar_size(BAR_DOORBELLS) / 2
    }

    /// The word of the shared half at an offset of the BAR, for a VMM that does not map it.
    fn doorbell(&self, offset: u64) -> Option<(usize, u64)> {
        let page = usize::try_from(offset / DOORBELL_STRIDE).ok()?;
        (page < self.queues.len()).then_some((page, offset % DOORBELL_STRIDE))
    }

    fn wake_page(&self, offset: u64) -> Option<usize> {
        usize::try_from(offset.checked_sub(self.doorbell_bytes())? / DOORBELL_STRIDE).ok()
    }

    fn wake(&self, queue: usize) {
        if queue < self.queues.len() {
            self.shared.ring(queue);
        }
    }

    fn read_register(&self, offset: u64) -> u32 {
        let settings = self.shared.settings();
        match offset {
            regs::ID => ID_MAGIC,
            regs::VERSION => u32::from(ABI_MAJOR) << 16 | u32::from(ABI_MINOR),
            o if o & !4 == regs::OPCODES => half(opcode::IMPLEMENTED, o),
            regs::LIMITS => Limits::new()
                .with_queues(settings.queues)
                .with_vectors(settings.vectors)
                .with_engines(settings.engines)
                .into_bits(),
            regs::MAX_RING_LOG2 => *RING_LOG2.end(),
            o if o & !4 == regs::MAX_LENGTH => half(MAX_LENGTH, o),
            regs::MAX_SCATTER => MAX_SCATTER_ENTRIES,
            regs::COMMAND_LIMIT => {
                u32::try_from(settings.page_request_timeout_ns.div_ceil(1_000_000)).unwrap_or(u32::MAX)
            }
            regs::CONTROL => Control::new().with_enable(self.shared.status().enabled()).into_bits(),
            regs::STATUS => self.shared.status().into_bits(),
            regs::COMMAND_STATUS => self.shared.command_status(0).into_bits(),
            o if o & !4 == regs::FEATURES => half(self.features().bits(), o),
            _ => match (self.queue_at(offset), abort_slot_at(offset)) {
                (Some((queue, register)), _) => self.read_queue(queue, register),
                (None, Some(slot)) => self.read_abort_slot(slot).into_bits(),
                (None, None) => self.mirror.read(&self.shared, offset),
            },
        }
    }

    fn features(&self) -> Features {
        let unit = if self.shared.settings().untranslated {
            Features::empty()
        } else {
            Features::PROCESS_ADDRESSES | Features::PAGE_REQUESTS
        };
        let mut all = unit | Features::MIRROR | Features::OPERAND_SPACES;
        all.set(Features::DEVICE_MEMORY, self.shared.settings().device_memory != 0);
        all
    }

    fn read_abort_slot(&self, slot: usize) -> AbortSlot {
        let status = self.shared.command_status(1 + slot);
        AbortSlot::new().with_pasid(self.abort_pasids[slot]).with_timeout(status.timeout()).with_busy(status.busy())
    }

    fn write_abort_slot(&mut self, slot: usize, value: AbortSlot) {
        let pasid = Pasid::from_low_bits(value.pasid().into());
        if value.busy() && self.shared.command(1 + slot, Command::Abort(pasid)) {
            self.abort_pasids[slot] = value.pasid();
        }
    }

    fn queue_at(&self, offset: u64) -> Option<(usize, u64)> {
        let from = offset.checked_sub(regs::QUEUES)?;
        let queue = usize::try_from(from / regs::QUEUE_STRIDE).ok()?;
        (queue < self.queues.len()).then_some((queue, from % regs::QUEUE_STRIDE))
    }

    fn read_queue(&self, queue: usize, register: u64) -> u32 {
        let bank = &self.queues[queue];
        let face = self.shared.queue(queue);
        match register {
            r if r & !4 == regs::QUEUE_SQ_BASE => half(bank.registers.sq_base, r),
            r if r & !4 == regs::QUEUE_CQ_BASE => half(bank.registers.cq_base, r),
            regs::QUEUE_SIZE => bank.registers.size,
            regs::QUEUE_PASID => bank.registers.pasid,
            regs::QUEUE_VECTOR => bank.registers.vector,
            regs::QUEUE_SERVICE => bank.registers.service,
            regs::QUEUE_MODERATION => bank.registers.moderation,
            regs::QUEUE_CONTROL => u32::from(bank.enable),
            regs::QUEUE_STATUS => face.status().into_bits(),
            r if r & !4 == regs::QUEUE_FAULT_ADDRESS => half(face.fault_address(), r),
            _ => 0,
        }
    }

    fn write_registers(&mut self, offset: u64, data: &[u8]) {
        let mut halves = words(offset, data);
        match (halves.next(), halves.next()) {
            // COMMAND starts with its low half, so that the high half must be there first.
            (Some((regs::COMMAND, low)), Some((_, high))) => {
                self.command_high = high;
                self.write_register(regs::COMMAND, low);
            }
            (low, high) => {
                for (offset, value) in low.into_iter().chain(high) {
                    self.write_register(offset, value);
                }
            }
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        const COMMAND_HIGH: u64 = regs::COMMAND + 4;
        match offset {
            regs::CONTROL => self.write_control(Control::from_bits(value)),
            regs::WAKE => self.wake(usize::try_from(value).unwrap_or(usize::MAX)),
            COMMAND_HIGH => self.command_high = value,
            regs::COMMAND => self.write_command(u64::from(self.command_high) << 32 | u64::from(value)),
            _ => match (self.queue_at(offset), abort_slot_at(offset)) {
                (Some((queue, register)), _) => self.write_queue(queue, register, value),
                (None, Some(slot)) => self.write_abort_slot(slot, AbortSlot::from_bits(value)),
                (None, None) => {
                    let bus_master = self.config.command().bus_master();
                    self.mirror.write(&self.shared, bus_master, offset, value);
                }
            },
        }
    }

    fn write_control(&mut self, control: Control) {
        if !control.enable() && self.shared.status().enabled() {
            for bank in &mut self.queues {
                bank.enable = false;
            }
        }
        self.shared.set_enabled(control.enable());
    }

    fn write_command(&mut self, value: u64) {
        let register = CommandRegister::from_bits(value);
        let pasid = Pasid::from_low_bits(register.pasid().into());
        let clean = CommandRegister::new().with_opcode(register.opcode()).with_pasid(register.pasid());
        match register.opcode() {
            _ if value != clean.into_bits() => self.shared.bad_command(),
            command::ABORT_PASID => drop(self.shared.command(0, Command::Abort(pasid))),
            command::DRAIN_PASID => drop(self.shared.command(0, Command::Drain(pasid))),
            _ => self.shared.bad_command(),
        }
    }

    fn write_queue(&mut self, queue: usize, register: u64, value: u32) {
        let vectors = self.shared.settings().vectors;
        let bank = &mut self.queues[queue];
        if register == regs::QUEUE_CONTROL {
            let enable = value & 1 != 0;
            if enable == std::mem::replace(&mut bank.enable, enable) {
                return;
            }
            match (enable, bank.registers.check(vectors)) {
                (true, Some(config)) => self.shared.enable_queue(queue, config),
                (true, None) => {
                    bank.enable = false;
                    self.shared.queue(queue).set(QueueStatus::new().with_error(queue_error::BAD_CONFIG), 0);
                }
                (false, _) => self.shared.disable_queue(queue),
            }
            return;
        }
        if bank.enable {
            return;
        }
        let registers = &mut bank.registers;
        match register {
            r if r & !4 == regs::QUEUE_SQ_BASE => set_half(&mut registers.sq_base, r, value),
            r if r & !4 == regs::QUEUE_CQ_BASE => set_half(&mut registers.cq_base, r, value),
            regs::QUEUE_SIZE => registers.size = value,
            regs::QUEUE_PASID => registers.pasid = value,
            regs::QUEUE_VECTOR => registers.vector = value,
            regs::QUEUE_SERVICE => registers.service = value,
            regs::QUEUE_MODERATION => registers.moderation = value,
            _ => {}
        }
    }
}

/// The abort slot at an offset of the registers.
fn abort_slot_at(offset: u64) -> Option<usize> {
    let slot = usize::try_from(offset.checked_sub(regs::ABORT)? / 4).ok()?;
    (slot < ABORT_SLOTS as usize).then_some(slot)
}

/// Whether an access is one that registers answer: 4 or 8 bytes, naturally aligned.
fn is_register_access(offset: u64, len: usize) -> bool {
    matches!(len, 4 | 8) && offset.is_multiple_of(len as u64)
}

/// The 32-bit words of a register access, in ascending order; none if it is not one.
fn words(offset: u64, data: &[u8]) -> impl Iterator<Item = (u64, u32)> {
    let data = if is_register_access(offset, data.len()) { data } else { &[] };
    let values = data.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().expect("chunks of 4 bytes")));
    values.enumerate().map(move |(n, value)| (offset + 4 * n as u64, value))
}

fn words_mut(offset: u64, data: &mut [u8]) -> impl Iterator<Item = (u64, &mut [u8])> {
    let data = if is_register_access(offset, data.len()) { data } else { &mut [] };
    // An aligned access does not wrap, so neither does the offset of a word in it.
    data.chunks_exact_mut(4).enumerate().map(move |(n, bytes)| (offset + 4 * n as u64, bytes))
}
