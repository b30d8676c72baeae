//! Configuration space, as software sees it through QEMU.
//!
//! # How it works
//! `layout` says, for each bit, its reset value and whether it is read-only, writable or cleared by writing 1. The
//! space applies writes by that alone. Then it compares what the rest of the function cares about before and after: the
//! difference is the write's [`ConfigEffects`]. A bit that no register's line in `layout` names cannot change.
//!
//! A write is carried out dword by dword in ascending order, whatever its size: what one dword does (disable ATS, reset
//! the function) holds for the next.
//!
//! # What QEMU adds
//! QEMU's `vfio-user-pci` first forwards every write here and then does its own bookkeeping. It emulates the MSI-X
//! capability, capability pointers and the multi-function bit for the guest, and shadows them in what it reads back.
//! BAR addresses, MSI-X control, ATS, PRI, PASID and the FLR bit arrive here. Before a reset, QEMU clears the command
//! register's enables by ordinary writes.
//!
//! # What is not there
//! Power management (see `layout`), INTx, I/O BARs, an expansion ROM, link registers, and error reporting beyond the
//! mandatory bits, which nothing sets.
use std::fmt;

use svadev_spec::pcie::{
    AtsControl, CONFIG_SPACE_SIZE, Command, DeviceControl, MsiXControl, PageRequestControl, PageRequestStatus,
    PasidControl, ats, header, msi_x, pasid, pci_express, pri,
};

use crate::description::{Bar, Description};
use crate::effect::{ConfigEffect, ConfigEffects};
use crate::layout::{Layout, PCI_EXPRESS, bar_offset};

/// The configuration space of one function.
#[derive(Clone)]
pub struct ConfigSpace {
    layout: Box<Layout>,
    pub(crate) bytes: Box<[u8; CONFIG_SPACE_SIZE]>,
    description: Description,
}

/// The bytes of a configuration space, as they are saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigState(Box<[u8; CONFIG_SPACE_SIZE]>);

/// What the rest of the function wants to know of.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Watched {
    command: Command,
    bars: [Option<u64>; header::BARS],
    msi_x: MsiXControl,
    ats: AtsControl,
    pri_enabled: bool,
    allocation: u32,
    pasid: PasidControl,
}

impl ConfigSpace {
    /// A configuration space after reset. Panics if a value of the description is out of its range.
    pub fn new(description: Description) -> Self {
        let layout = Layout::new(&description);
        Self { bytes: Box::new(layout.reset), layout, description }
    }

    /// The bytes now.
    pub fn save(&self) -> ConfigState {
        ConfigState(self.bytes.clone())
    }

    /// Goes on with what was saved from a configuration space of the same description. The owner carries out what
    /// follows from it.
    pub fn restore(&mut self, state: &ConfigState) {
        self.bytes.clone_from(&state.0);
    }

    /// What it was made from.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// Fills `buf` from `offset`. Where there is no configuration space it reads ones, as on a bus that nobody answers.
    pub fn read(&self, offset: u64, buf: &mut [u8]) {
        buf.fill(0xff);
        if let Some(there) = usize::try_from(offset).ok().and_then(|offset| self.bytes.get(offset..)) {
            let len = there.len().min(buf.len());
            buf[..len].copy_from_slice(&there[..len]);
        }
    }

    /// Writes `data` at `offset` as far as each bit allows, and says what that changed. What is beyond the space is
    /// ignored.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> ConfigEffects {
        let before = self.watched();
        let mut commands = Commands::default();
        let mut at = usize::try_from(offset).unwrap_or(CONFIG_SPACE_SIZE).min(CONFIG_SPACE_SIZE);
        let mut rest = &data[..data.len().min(CONFIG_SPACE_SIZE - at)];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(4 - at % 4));
            self.write_dword(at, now, &mut commands);
            at += now.len();
            rest = later;
        }
        self.effects(&before, commands)
    }

    /// Conventional reset (§6.6.1) and function level reset (§6.6.2): here they are the same, for nothing is sticky,
    /// and what FLR leaves alone is read-only. BARs go back to 0: whoever reset the function puts them back.
    pub fn reset(&mut self) {
        *self.bytes = self.layout.reset;
    }

    /// Size of a BAR, bytes; 0 where there is none (the upper half of a 64-bit BAR included).
    pub fn bar_size(&self, bar: u32) -> u64 {
        self.bar(bar).map_or(0, |(_, bar)| bar.size)
    }

    /// Where the function answers accesses to `bar`: `None` without such a BAR, while memory space is off, while the
    /// BAR is being sized (all its writable bits are 1 in either half), and at address 0, which firmware means as *not
    /// placed* and QEMU does not map.
    pub fn bar_address(&self, bar: u32) -> Option<u64> {
        let (index, bar) = self.bar(bar)?;
        let offset = bar_offset(index);
        let mask = !(bar.size - 1);
        let low = u64::from(self.u32(offset)) & mask;
        let high = if bar.wide { self.u32(offset + 4) } else { 0 };
        let sizing = low == mask & 0xffff_ffff || high == u32::MAX;
        let address = u64::from(high) << 32 | low;
        (self.command().memory_space() && !sizing && address != 0).then_some(address)
    }

    /// The address at which a BAR is decoded, for a device that finds its own memory by address. Unlike
    /// [`bar_address`](Self::bar_address), this also returns what software writes to learn the BAR's size: the BAR is
    /// decoded there until software writes an address.
    pub fn bar_place(&self, bar: u32) -> Option<u64> {
        let (index, bar) = self.bar(bar)?;
        let offset = bar_offset(index);
        let high = if bar.wide { self.u32(offset + 4) } else { 0 };
        let address = (u64::from(high) << 32 | u64::from(self.u32(offset))) & !(bar.size - 1);
        (self.command().memory_space() && address != 0).then_some(address)
    }

    fn bar(&self, bar: u32) -> Option<(usize, Bar)> {
        let index = usize::try_from(bar).ok()?;
        Some((index, (*self.description.bars.get(index)?)?))
    }

    /// Command register (§7.5.1.1.3): memory space and bus mastering.
    pub fn command(&self) -> Command {
        Command::from_bits(self.u16(header::COMMAND))
    }

    /// MSI-X control (§7.7.2.2); disabled in a function that has none.
    pub fn msi_x(&self) -> MsiXControl {
        MsiXControl::from_bits(self.control(self.layout.msi_x, msi_x::CONTROL))
    }

    /// ATS control (§10.5.1.3); disabled in a function that has none.
    pub fn ats(&self) -> AtsControl {
        AtsControl::from_bits(self.control(self.layout.ats, ats::CONTROL))
    }

    /// Page requests may be sent (§10.5.2.2).
    pub fn page_requests_enabled(&self) -> bool {
        PageRequestControl::from_bits(self.control(self.layout.pri, pri::CONTROL)).enable()
    }

    /// How many page requests may be outstanding (§10.5.2.5), never above the capacity.
    pub fn page_request_allocation(&self) -> u32 {
        let capacity = self.description.pri.map_or(0, |pri| pri.capacity);
        self.layout.pri.map_or(0, |at| self.u32(at + pri::OUTSTANDING_ALLOCATION).min(capacity))
    }

    /// PASID control (§7.8.9.3); disabled in a function that has none.
    pub fn pasid(&self) -> PasidControl {
        PasidControl::from_bits(self.control(self.layout.pasid, pasid::CONTROL))
    }

    /// A capability's 16-bit control register; 0 without the capability.
    fn control(&self, capability: Option<u16>, offset: u16) -> u16 {
        capability.map_or(0, |at| self.u16(at + offset))
    }

    /// Shows that no page request is outstanding (§10.5.2.3, *Stopped*). Ignored while page requests are enabled: new
    /// ones may go out then. Until this is shown, Linux refuses to enable them again without a reset of the interface.
    pub fn set_page_requests_stopped(&mut self) {
        if !self.page_requests_enabled() {
            self.change_page_request_status(|status| status.with_stopped(true));
        }
    }

    /// Shows that a page group response said *failure* (§10.5.2.3), until software clears it.
    pub fn set_response_failure(&mut self) {
        self.change_page_request_status(|status| status.with_response_failure(true));
    }

    /// Shows that a page group response came for a group without a request (§10.5.2.3), until software clears it.
    pub fn set_unexpected_prg_index(&mut self) {
        self.change_page_request_status(|status| status.with_unexpected_prg_index(true));
    }

    /// Does nothing in a function without page requests.
    fn change_page_request_status(&mut self, change: impl FnOnce(PageRequestStatus) -> PageRequestStatus) {
        if let Some(at) = self.layout.pri {
            let status = PageRequestStatus::from_bits(self.u16(at + pri::STATUS));
            self.set_u16(at + pri::STATUS, change(status).into_bits());
        }
    }

    fn u16(&self, offset: u16) -> u16 {
        let at = usize::from(offset);
        u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    fn set_u16(&mut self, offset: u16, value: u16) {
        self.bytes[usize::from(offset)..][..2].copy_from_slice(&value.to_le_bytes());
    }

    fn u32(&self, offset: u16) -> u32 {
        u32::from(self.u16(offset + 2)) << 16 | u32::from(self.u16(offset))
    }

    /// Writes `data`, all of it in one dword, and carries out what the dword commands.
    fn write_dword(&mut self, at: usize, data: &[u8], commands: &mut Commands) {
        if self.is_locked(at & !3) {
            return;
        }
        let were_enabled = self.page_requests_enabled();
        for (at, value) in (at..).zip(data) {
            let rw = self.layout.rw[at];
            let taken = self.bytes[at] & !rw | value & rw;
            self.bytes[at] = taken & !(value & self.layout.rw1c[at]);
        }
        // What was written to a 16-bit register; its bytes that were not written count as 0.
        let dword = at & !3;
        let mut bytes = [0; 4];
        bytes[at - dword..][..data.len()].copy_from_slice(data);
        let written = |offset: u16| match usize::from(offset).checked_sub(dword) {
            Some(i @ (0 | 2)) => u16::from_le_bytes([bytes[i], bytes[i + 1]]),
            _ => 0,
        };
        // §7.5.3.4: writing 1 initiates the reset; the bit itself reads 0. In a function without FLR it is reserved.
        if self.description.function_level_reset
            && DeviceControl::from_bits(written(PCI_EXPRESS + pci_express::DEVICE_CONTROL)).initiate_flr()
        {
            self.reset();
            commands.flr = true;
        }
        if let Some(at) = self.layout.pri {
            let control = PageRequestControl::from_bits(written(at + pri::CONTROL));
            self.page_request_control(were_enabled, control, commands);
        }
    }

    /// A write is ignored where the specification leaves its outcome undefined. PASID control must not change while
    /// ATS is enabled (§7.8.9.3), nor the allocation while page requests are (§10.5.2.5).
    fn is_locked(&self, dword: usize) -> bool {
        let is = |capability: Option<u16>, offset| capability.is_some_and(|at| dword == usize::from(at + offset));
        (is(self.layout.pasid, pasid::CAPABILITY) && self.ats().enable())
            || (is(self.layout.pri, pri::OUTSTANDING_ALLOCATION) && self.page_requests_enabled())
    }

    /// Page request control (§10.5.2.2).
    fn page_request_control(&mut self, were_enabled: bool, written: PageRequestControl, commands: &mut Commands) {
        // Reset acts only while disabled. With nothing outstanding any more, the interface is stopped.
        if written.reset() && !were_enabled {
            commands.pri_reset = true;
            self.change_page_request_status(|status| status.with_stopped(true));
        }
        // Stopped means something only while disabled. From an enable on it is for the function to say.
        if self.page_requests_enabled() && !were_enabled {
            self.change_page_request_status(|status| status.with_stopped(false));
        }
    }

    fn watched(&self) -> Watched {
        Watched {
            command: self.command(),
            bars: [0, 1, 2, 3, 4, 5].map(|bar| self.bar_address(bar)),
            msi_x: self.msi_x(),
            ats: self.ats(),
            pri_enabled: self.page_requests_enabled(),
            allocation: self.page_request_allocation(),
            pasid: self.pasid(),
        }
    }

    /// In the order in which they are to be handled: what stops things first.
    fn effects(&self, before: &Watched, commands: Commands) -> ConfigEffects {
        let mut effects = ConfigEffects::default();
        let now = self.watched();
        if commands.flr {
            effects.push(ConfigEffect::Flr);
        }
        if now.command.bus_master() != before.command.bus_master() {
            effects.push(ConfigEffect::BusMaster(now.command.bus_master()));
        }
        if now.command.memory_space() != before.command.memory_space() {
            effects.push(ConfigEffect::MemorySpace(now.command.memory_space()));
        }
        if now.command.interrupt_disable() != before.command.interrupt_disable() {
            effects.push(ConfigEffect::InterruptDisable(now.command.interrupt_disable()));
        }
        for (bar, (address, before)) in (0..).zip(now.bars.into_iter().zip(before.bars)) {
            if address != before {
                effects.push(ConfigEffect::Bar { bar, address });
            }
        }
        if now.msi_x != before.msi_x {
            effects.push(ConfigEffect::MsiX { enabled: now.msi_x.enable(), masked: now.msi_x.function_mask() });
        }
        if now.pasid != before.pasid {
            effects.push(ConfigEffect::Pasid { enabled: now.pasid.enable() });
        }
        if now.ats != before.ats {
            let smallest_translation_unit_log2 = 12 + now.ats.smallest_translation_unit();
            effects.push(ConfigEffect::Ats { enabled: now.ats.enable(), smallest_translation_unit_log2 });
        }
        if commands.pri_reset {
            effects.push(ConfigEffect::PriReset);
        }
        if (now.pri_enabled, now.allocation) != (before.pri_enabled, before.allocation) {
            effects.push(ConfigEffect::Pri { enabled: now.pri_enabled, allocation: now.allocation });
        }
        effects
    }
}

/// Bits that do something when written and read 0.
#[derive(Clone, Copy, Default)]
struct Commands {
    flr: bool,
    pri_reset: bool,
}

impl fmt::Debug for ConfigSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfigSpace")
            .field("identity", &self.description.identity)
            .field("command", &self.command())
            .field("ats", &self.ats())
            .field("pasid", &self.pasid())
            .finish_non_exhaustive()
    }
}
