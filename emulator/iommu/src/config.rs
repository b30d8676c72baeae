//! What a unit is built to be, and the capability registers that say so.
use svadev_spec::vtd::registers::{Capability, ExtendedCapability};
use svadev_spec::vtd::tables::Level;

use crate::layout::{FAULT_RECORD_OFFSET, IOTLB_REGISTER_OFFSET, MAX_FAULT_RECORDS};

/// Largest address mask of a page-selective invalidation (CAP.MAMV): 2^51 pages are half of a 64-bit address space.
///
/// Linux looks at MAMV for IOTLB invalidations only. A PASID-based invalidation (`cache_tag_flush_iotlb()`) takes the
/// smallest aligned block around the range, which is huge for two pages on both sides of a boundary. If its mask is
/// above MAMV, the queue stops, and Linux spins until its fault handler has cleared the error.
pub const MAX_ADDRESS_MASK: u8 = 51;

/// How long the unit keeps what it read from tables (`--caching`). Results never depend on it if software invalidates
/// as the specification demands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Caching {
    /// Nothing is kept: every request walks every table.
    None,
    /// Present entries are kept until they are invalidated or evicted.
    #[default]
    Strict,
    /// As long as the specification permits. An invalidation removes what it names and nothing else. An entry makes
    /// room only when a cache is full. A stale paging-structure entry is used without a second look. Wide invalidations
    /// take time in proportion to the entries of their domain or PASID.
    Adversarial,
}

/// What a unit is built to be. `Default` is what a stock Linux 7.x kernel wants for shared virtual addressing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitConfig {
    /// Host address width in bits, 36 to 52: higher address bits in tables are reserved.
    pub host_address_width: u8,
    /// PASID bits (ECAP.PSS + 1), 1 to 20.
    pub max_pasid_bits: u8,
    /// Five-level tables (CAP.FS5LP, and 57 bits in CAP.SAGAW and CAP.MGAW). Linux refuses SVA on a five-level CPU
    /// without it.
    pub levels5: bool,
    /// 1 GiB pages in both stages (CAP.FS1GP, CAP.SSLPS). Linux refuses SVA without it when the CPU has them.
    pub pages_1gib: bool,
    /// 2 MiB pages in the second stage (CAP.SSLPS). The first stage always has them. Without, there are no 1 GiB pages
    /// either.
    pub pages_2mib: bool,
    /// Scalable mode (ECAP.SMTS). Without it, nothing is there that needs a PASID table: see
    /// [`UnitConfig::effective`].
    pub scalable: bool,
    /// First-stage translation (ECAP.FSTS). Nested translation needs it.
    pub first_stage: bool,
    /// Page requests (ECAP.PRS).
    pub page_requests: bool,
    /// Table walks are coherent with the processors' caches (ECAP.C, ECAP.SMPWCS). Here they always are; without the
    /// bits, software flushes every entry that it writes.
    pub coherent: bool,
    /// Nested translation (ECAP.NEST).
    pub nested: bool,
    /// Supervisor requests (ECAP.SRS).
    pub supervisor_requests: bool,
    /// Execute requests (ECAP.ERS).
    pub execute_requests: bool,
    /// Fault recording registers, 1 to [`MAX_FAULT_RECORDS`].
    pub fault_records: u8,
    /// IOTLB entries, a power of two from 64 to 2^20.
    pub iotlb_entries: usize,
    /// PASID cache entries, a power of two from 64 to 2^20.
    pub pasid_cache_entries: usize,
    /// How long cached entries are kept.
    pub caching: Caching,
}

impl Default for UnitConfig {
    fn default() -> Self {
        Self {
            host_address_width: Self::HOST_ADDRESS_WIDTH,
            max_pasid_bits: 20,
            levels5: true,
            pages_1gib: true,
            pages_2mib: true,
            scalable: true,
            first_stage: true,
            page_requests: true,
            coherent: true,
            nested: true,
            supervisor_requests: true,
            execute_requests: true,
            fault_records: 16,
            iotlb_entries: 1 << 14,
            pasid_cache_entries: 1 << 13,
            caching: Caching::Strict,
        }
    }
}

impl UnitConfig {
    /// The default host address width, which the DMAR table must tell the guest, too. It is the architectural maximum:
    /// no entry of a guest's own page tables is ever refused for its width.
    pub const HOST_ADDRESS_WIDTH: u8 = 52;

    /// The configuration that counts: what needs a capability that is not there is not there either. Large pages of
    /// the second stage come by size, nested translation needs a first stage, and legacy mode has none of scalable
    /// mode's capabilities.
    #[must_use]
    pub fn effective(self) -> Self {
        let Self { scalable, first_stage, pages_2mib, .. } = self;
        let first_stage = first_stage && scalable;
        Self {
            pages_1gib: self.pages_1gib && pages_2mib,
            first_stage,
            nested: self.nested && first_stage,
            page_requests: self.page_requests && scalable,
            supervisor_requests: self.supervisor_requests && scalable,
            execute_requests: self.execute_requests && scalable,
            ..self
        }
    }

    /// # Panics
    /// On a value outside its range: configurations come from the host, never from the guest.
    pub(crate) fn check(&self) {
        assert!((36..=52).contains(&self.host_address_width), "host address width {}", self.host_address_width);
        assert!((1..=20).contains(&self.max_pasid_bits), "PASID bits {}", self.max_pasid_bits);
        assert!((1..=MAX_FAULT_RECORDS).contains(&self.fault_records), "fault records {}", self.fault_records);
        for entries in [self.iotlb_entries, self.pasid_cache_entries] {
            assert!(entries.is_power_of_two() && (64..=1 << 20).contains(&entries), "cache of {entries} entries");
        }
    }

    /// The widest guest address in bits (CAP.MGAW + 1).
    pub(crate) fn guest_address_width(&self) -> u8 {
        if self.levels5 { Level::FIVE.width() } else { Level::FOUR.width() }
    }

    /// The capability register (§11.4.2).
    pub fn capability(&self) -> Capability {
        Capability::new()
            // 64 Ki domains.
            .with_domains(6)
            .with_second_stage_widths(if self.levels5 { 0b1110 } else { 0b0110 })
            .with_maximum_guest_address_width(self.guest_address_width() - 1)
            .with_fault_recording_offset(units_of_16(FAULT_RECORD_OFFSET))
            .with_second_stage_large_pages(u8::from(self.pages_2mib) | u8::from(self.pages_1gib) << 1)
            .with_page_selective_invalidation(true)
            .with_fault_recording_registers(self.fault_records - 1)
            .with_maximum_address_mask(MAX_ADDRESS_MASK)
            // An untranslated access is over before its caller lets go of the unit, so draining is free.
            .with_drain_write(true)
            .with_drain_read(true)
            .with_first_stage_1gib_pages(self.pages_1gib)
            .with_first_stage_5level(self.levels5)
            .with_enhanced_set_rtp(true)
    }

    /// The extended capability register (§11.4.3).
    pub fn extended_capability(&self) -> ExtendedCapability {
        let common = ExtendedCapability::new()
            .with_page_walk_coherency(self.coherent)
            .with_queued_invalidation(true)
            .with_device_tlb(true)
            .with_pass_through(true)
            .with_snoop_control(true)
            .with_iotlb_register_offset(units_of_16(IOTLB_REGISTER_OFFSET))
            .with_abort_dma_mode(true);
        if !self.scalable {
            return common;
        }
        common
            .with_nested(self.nested)
            .with_page_request(self.page_requests)
            .with_execute_request(self.execute_requests)
            .with_supervisor_request(self.supervisor_requests)
            .with_no_write_flag(true)
            .with_extended_accessed_flag(self.first_stage)
            .with_pasid_size(self.max_pasid_bits - 1)
            .with_pasid(true)
            .with_page_request_drain(self.page_requests)
            .with_scalable_mode(true)
            .with_second_stage_accessed_dirty(true)
            .with_second_stage(true)
            .with_first_stage(self.first_stage)
            .with_scalable_mode_page_walk_coherency(self.coherent)
            .with_rid_pasid(true)
            .with_rid_privileged(self.supervisor_requests)
            .with_stop_marker(self.page_requests)
    }
}

/// Widths and sizes the unit was built with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Address bits that are reserved: from the host address width up.
    reserved: u64,
    /// CAP.MGAW + 1.
    pub(crate) guest_address_width: u8,
    /// The highest level whose entries may map pages, in the first stage.
    pub(crate) largest_first: Level,
    /// The same in the second stage.
    pub(crate) largest_second: Level,
}

impl Limits {
    pub(crate) fn new(config: &UnitConfig) -> Self {
        Self {
            reserved: !0 << config.host_address_width,
            guest_address_width: config.guest_address_width(),
            largest_first: if config.pages_1gib { Level::THREE } else { Level::TWO },
            largest_second: match (config.pages_1gib, config.pages_2mib) {
                (true, _) => Level::THREE,
                (false, true) => Level::TWO,
                (false, false) => Level::ONE,
            },
        }
    }

    /// Whether an address in units of 4 KiB has bits at or above the host address width.
    #[inline]
    pub(crate) fn frame_too_wide(&self, frame: u64) -> bool {
        (frame << 12) & self.reserved != 0
    }
}

fn units_of_16(offset: u64) -> u16 {
    assert!(offset.is_multiple_of(16), "register blocks are aligned to 16 bytes");
    u16::try_from(offset / 16).expect("register blocks lie in the first pages")
}
