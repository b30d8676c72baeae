//! The register page: dispatch of reads and writes (§11.2, §11.4).
use svadev_fabric::Downstream;
use svadev_memory::GuestMemory;
use svadev_mutation::mutant;
use svadev_spec::vtd::invalidation::InvalidateAddress;
use svadev_spec::vtd::registers::{
    ContextCommand, Global, InvalidationQueueAddress, IotlbInvalidate, PageRequestQueueAddress, RootTableAddress,
    offset, translation_table_mode,
};

use super::Unit;
use crate::interrupts::EventKind;
use crate::layout::{FAULT_RECORD_OFFSET, IOTLB_REGISTER_OFFSET, REGISTER_SPACE, VERSION};

const IVA: u64 = IOTLB_REGISTER_OFFSET;
const IOTLB: u64 = IOTLB_REGISTER_OFFSET + 8;

/// Bits of IQH and IQT (§11.4.9.1).
const QUEUE_OFFSET_MASK: u64 = 0x7_fff0;
/// Bits of PQH and PQT (§11.4.11.1).
const PAGE_REQUEST_OFFSET_MASK: u64 = 0x7_ffe0;

impl<M: GuestMemory> Unit<M> {
    /// Reads a register of 4 or 8 bytes. Other sizes, misaligned and unknown offsets read as zero.
    pub fn read_register(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if !valid_access(offset, data.len()) {
            return;
        }
        for (i, dword) in data.chunks_exact_mut(4).enumerate() {
            dword.copy_from_slice(&self.read_dword(offset + 4 * i as u64).to_le_bytes());
        }
    }

    /// Writes a register of 4 or 8 bytes. Other sizes, misaligned, unknown and read-only offsets are ignored.
    pub fn write_register(&mut self, offset: u64, data: &[u8], ports: &dyn Downstream) {
        if !valid_access(offset, data.len()) {
            return;
        }
        if let Ok(value) = data.try_into().map(u64::from_le_bytes)
            && is_64bit(offset)
        {
            self.write_qword(offset, value, u64::MAX, ports);
            return;
        }
        for (i, dword) in data.chunks_exact(4).enumerate() {
            let value = u32::from_le_bytes(dword.try_into().expect("chunks of four bytes"));
            self.write_dword(offset + 4 * i as u64, value, ports);
            if mutant!(WideWriteHalved) {
                return;
            }
        }
    }

    fn read_dword(&self, at: u64) -> u32 {
        if is_64bit(at & !7) {
            let shift = if at & 4 == 0 { 0 } else { 32 };
            return u32::try_from(self.read_qword(at & !7) >> shift & 0xffff_ffff).expect("masked to 32 bits");
        }
        match at {
            offset::VER => VERSION,
            offset::GSTS => self.state.global.into(),
            offset::FSTS => self.state.faults.status().into(),
            offset::FECTL => self.state.fault_event.control(),
            offset::FEDATA => self.state.fault_event.data,
            offset::FEADDR => self.state.fault_event.address,
            offset::FEUADDR => self.state.fault_event.upper_address,
            offset::ICS => u32::from(self.state.queue.wait_completed),
            offset::IECTL => self.state.invalidation_event.control(),
            offset::IEDATA => self.state.invalidation_event.data,
            offset::IEADDR => self.state.invalidation_event.address,
            offset::IEUADDR => self.state.invalidation_event.upper_address,
            offset::PRS => self.state.page_requests.status.into(),
            offset::PECTL => self.state.page_request_event.control(),
            offset::PEDATA => self.state.page_request_event.data,
            offset::PEADDR => self.state.page_request_event.address,
            offset::PEUADDR => self.state.page_request_event.upper_address,
            _ => 0,
        }
    }

    fn read_qword(&self, at: u64) -> u64 {
        match at {
            offset::CAP => self.config.capability().into(),
            offset::ECAP => self.config.extended_capability().into(),
            offset::RTADDR => self.state.root_register.into(),
            offset::CCMD => self.state.context_command.into(),
            offset::IQH => self.state.queue.head,
            offset::IQT => self.state.queue.tail,
            offset::IQA => self.state.queue.address.into(),
            offset::IQERCD => self.state.queue.error.into(),
            offset::PQH => self.state.page_requests.head,
            offset::PQT => self.state.page_requests.tail,
            offset::PQA => self.state.page_requests.address.into(),
            IVA => 0,
            IOTLB => self.state.iotlb_command.into(),
            FAULT_RECORD_OFFSET.. => {
                let index = usize::try_from((at - FAULT_RECORD_OFFSET) / 16).expect("offsets fit any usize");
                self.state
                    .faults
                    .records
                    .get(index)
                    .map_or(0, |record| if at & 8 == 0 { record.low.into() } else { record.high.into() })
            }
            _ => 0,
        }
    }

    fn write_dword(&mut self, at: u64, value: u32, ports: &dyn Downstream) {
        if is_64bit(at & !7) {
            let shift = if at & 4 == 0 { 0 } else { 32 };
            self.write_qword(at & !7, u64::from(value) << shift, 0xffff_ffff << shift, ports);
            return;
        }
        match at {
            offset::GCMD => self.global_command(value.into(), ports),
            offset::FSTS => self.write_fault_status(value, ports),
            offset::FECTL => self.write_event_control(EventKind::Fault, value, ports),
            offset::FEDATA => self.state.fault_event.data = value,
            offset::FEADDR => self.state.fault_event.address = value,
            offset::FEUADDR => self.state.fault_event.upper_address = value,
            offset::ICS if value & 1 != 0 => {
                self.state.queue.wait_completed = false;
                self.event_serviced(EventKind::Invalidation);
            }
            offset::IECTL => self.write_event_control(EventKind::Invalidation, value, ports),
            offset::IEDATA => self.state.invalidation_event.data = value,
            offset::IEADDR => self.state.invalidation_event.address = value,
            offset::IEUADDR => self.state.invalidation_event.upper_address = value,
            offset::PRS => self.write_page_request_status(value),
            offset::PECTL => self.write_event_control(EventKind::PageRequest, value, ports),
            offset::PEDATA => self.state.page_request_event.data = value,
            offset::PEADDR => self.state.page_request_event.address = value,
            offset::PEUADDR => self.state.page_request_event.upper_address = value,
            _ => {}
        }
    }

    /// Writes the bits in `mask` of a 64-bit register: all, or one half. A command starts when the half with its start
    /// bit is written.
    fn write_qword(&mut self, at: u64, value: u64, mask: u64, ports: &dyn Downstream) {
        let merge = |old: u64| old & !mask | value & mask;
        match at {
            offset::RTADDR => {
                // Bits 9:0 are reserved. It takes effect with GCMD.SRTP only (§11.4.5).
                self.state.root_register = RootTableAddress::from(merge(self.state.root_register.into()) & !0x3ff);
            }
            offset::CCMD => {
                let command = ContextCommand::from(merge(self.state.context_command.into()));
                self.state.context_command = if command.invalidate() { self.context_command(command) } else { command };
            }
            offset::IQT => {
                self.state.queue.tail = merge(self.state.queue.tail) & QUEUE_OFFSET_MASK;
                self.process_queue(ports);
            }
            // Software changes the queue only while it is disabled; a change under a running head would lead it astray.
            offset::IQA if !self.state.global.queued_invalidation_enable() || mutant!(QueueAddressWritable) => {
                let address = InvalidationQueueAddress::from(merge(self.state.queue.address.into()) & !0x7f8);
                // DW is reserved without scalable mode: nothing there has 256 bits.
                let wide = address.descriptor_width() && self.config.scalable;
                self.state.queue.address = address.with_descriptor_width(wide);
            }
            offset::PQH => {
                self.state.page_requests.head = merge(self.state.page_requests.head) & PAGE_REQUEST_OFFSET_MASK
            }
            offset::PQT => {
                self.state.page_requests.tail = merge(self.state.page_requests.tail) & PAGE_REQUEST_OFFSET_MASK
            }
            offset::PQA => {
                let address = merge(self.state.page_requests.address.into()) & !0xff8;
                self.state.page_requests.address = PageRequestQueueAddress::from(address);
            }
            IVA => self.state.invalidate_address = InvalidateAddress::from(merge(self.state.invalidate_address.into())),
            IOTLB => {
                let command = IotlbInvalidate::from(merge(self.state.iotlb_command.into()));
                self.state.iotlb_command = if command.invalidate() { self.iotlb_command(command) } else { command };
            }
            FAULT_RECORD_OFFSET.. if at & 8 != 0 => {
                let index = usize::try_from((at - FAULT_RECORD_OFFSET) / 16).expect("offsets fit any usize");
                self.write_fault_record(index, value & mask);
            }
            _ => {}
        }
    }

    /// GCMD (§11.4.4.1): some bits switch something on while they are set, others start something once. GSTS answers at
    /// once.
    fn global_command(&mut self, command: Global, ports: &dyn Downstream) {
        if command.root_table_pointer() {
            self.state.root = self.state.root_register;
            // Scalable mode is reserved without ECAP.SMTS (§11.4.5).
            if !self.config.scalable && self.scalable() {
                self.state.root.set_translation_table_mode(translation_table_mode::RESERVED);
            }
            self.state.global.set_root_table_pointer(true);
            // CAP.ESRTPS: every cache is emptied with it.
            self.report(|observer| observer.emptied());
            if !mutant!(RootPointerKeepsCaches) {
                self.entries.invalidate_contexts(&mut self.clock);
                self.caches.invalidate_all(&mut self.clock);
            }
        }
        if command.queued_invalidation_enable() != self.state.global.queued_invalidation_enable() {
            self.state.global.set_queued_invalidation_enable(command.queued_invalidation_enable());
            self.state.queue.restart();
            self.forget_queue(ports);
            self.report(|observer| observer.abandoned());
            self.process_queue(ports);
        }
        if command.translation_enable() != self.state.global.translation_enable() {
            tracing::debug!(enable = command.translation_enable(), "translation");
            if command.translation_enable() && !self.state.global.root_table_pointer() {
                // The specification leaves open what comes of it. Here the tables are those at address 0.
                tracing::warn!("remapping is enabled before a root table was set (GCMD.SRTP)");
            }
            self.state.global.set_translation_enable(command.translation_enable());
            if !command.translation_enable() {
                self.forget_requests(ports);
            }
        }
        // WBF has nothing to flush (CAP.RWBF is clear); IRE, SIRTP and CFI belong to interrupt remapping (ECAP.IR is
        // clear).
    }

    pub(crate) fn translation_enabled(&self) -> bool {
        self.state.global.translation_enable()
    }

    /// §3.4.5: every request is aborted, and no fault is recorded.
    pub(crate) fn aborts_dma(&self) -> bool {
        self.state.global.translation_enable()
            && self.state.root.translation_table_mode() == translation_table_mode::ABORT_DMA
    }
}

/// §11.2: accesses are naturally aligned and of 4 or 8 bytes.
fn valid_access(offset: u64, len: usize) -> bool {
    let len = len as u64;
    (len == 4 || len == 8) && offset.is_multiple_of(len) && offset < REGISTER_SPACE
}

/// Whether the 8 bytes at `at` are one register.
fn is_64bit(at: u64) -> bool {
    match at {
        offset::CAP
        | offset::ECAP
        | offset::RTADDR
        | offset::CCMD
        | offset::IQH
        | offset::IQT
        | offset::IQA
        | offset::IQERCD
        | offset::PQH
        | offset::PQT
        | offset::PQA
        | IVA
        | IOTLB => true,
        FAULT_RECORD_OFFSET.. => at.is_multiple_of(8),
        _ => false,
    }
}
