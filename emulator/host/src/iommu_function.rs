//! The IOMMU's own PCI function: a BAR with the unit's registers, and the memory that the unit's tables are in.
use std::sync::Arc;

use nix::errno::Errno;

use svadev_iommu::UnitState;
use svadev_mutation::mutant;
use svadev_pci::{ConfigState, IommuFunction};
use svadev_spec::device::BAR_UNIT;
use svadev_spec::vfio_user::region;
use svadev_vfio_user::{
    Device, DeviceInfo, DmaMap, DmaUnmap, IrqInfo, RegionInfo, ReplyToken, ResetReply, SetIrqs, UnmapReply,
};

use crate::bus::Bus;
use crate::events::{Events, HostEvent};
use crate::platform::{GuestMaps, Platform};

/// Most places of the unit that are reported while a VMM is connected. A guest can move its BAR as often as it likes.
const MAX_REPORTS: u32 = 64;

/// The function and its unit as a plain value, to be saved and restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IommuState {
    config: ConfigState,
    unit: UnitState,
}

/// The function, on its socket's thread.
pub struct IommuDevice<P: Platform> {
    function: IommuFunction,
    bus: Arc<Bus<P>>,
    maps: P::Maps,
    events: Events,
    connected: bool,
    /// Where the guest's firmware or kernel put the unit, as last reported.
    placed: Option<u64>,
    /// Number of reports since a VMM connected.
    reports: u32,
}

impl<P: Platform> IommuDevice<P> {
    /// The function in front of `bus`, whose unit uses the memory that `maps` changes.
    pub(crate) fn new(bus: Arc<Bus<P>>, maps: P::Maps, events: Events) -> Self {
        let function = IommuFunction::new();
        Self { function, bus, maps, events, connected: false, placed: None, reports: 0 }
    }

    /// The state now. The functions behind the unit must be paused.
    pub fn save(&self) -> IommuState {
        IommuState { config: self.function.config().save(), unit: self.bus.inside(|unit, _| unit.save()) }
    }

    /// Goes on with a state that was saved from a unit of the same configuration.
    pub fn restore(&mut self, state: &IommuState) {
        let IommuState { config, unit: saved } = state;
        self.function.restore(config);
        self.bus.inside(|unit, _| unit.restore(saved));
        self.bus.continue_queue();
        self.report_place();
    }

    /// Says where the unit is as soon as it is decoded somewhere new. While memory space is off, and while the BAR is
    /// being sized, it is nowhere, and what was said before stands.
    fn report_place(&mut self) {
        let place = self.function.config().bar_address(BAR_UNIT);
        if let Some(address) = place
            && self.placed != place
            && self.reports < MAX_REPORTS
        {
            self.reports += 1;
            self.placed = place;
            self.events.send(HostEvent::UnitPlaced { unit: self.bus.iommu_bdf(), address });
        }
    }
}

impl<P: Platform> Device for IommuDevice<P> {
    fn device_info(&self) -> DeviceInfo {
        DeviceInfo::pci(true)
    }

    fn region(&self, index: u32) -> RegionInfo<'_> {
        match index {
            region::CONFIG => RegionInfo::trapped(svadev_spec::pcie::CONFIG_SPACE_SIZE as u64),
            BAR_UNIT => RegionInfo::trapped(self.function.config().bar_size(BAR_UNIT)),
            _ => RegionInfo::ABSENT,
        }
    }

    fn irq(&self, _index: u32) -> IrqInfo {
        // The unit's interrupts are message writes of its own (VT-d 4.1 §11.4), not the function's.
        IrqInfo::default()
    }

    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        match region {
            region::CONFIG => self.function.config_read(offset, data),
            _ => self.bus.read_register(offset, data),
        }
        Ok(())
    }

    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), Errno> {
        if region != region::CONFIG {
            self.bus.write_register(offset, data);
            return Ok(());
        }
        // Of the effects, only a BAR's new place concerns the unit.
        let _ = self.function.config_write(offset, data);
        self.report_place();
        Ok(())
    }

    fn set_irqs(&mut self, _set: SetIrqs<'_>) -> Result<(), Errno> {
        Err(Errno::EINVAL)
    }

    fn dma_map(&mut self, map: DmaMap) -> Result<(), Errno> {
        if !std::mem::replace(&mut self.connected, true) {
            self.events.send(HostEvent::Connected(self.bus.iommu_bdf()));
        }
        self.maps.map(map)
    }

    fn dma_unmap(&mut self, range: DmaUnmap, _token: ReplyToken) -> UnmapReply {
        UnmapReply::Done(self.maps.unmap(range).map(|retired| {
            self.bus.unit_memory_changed();
            P::Maps::bytes(&retired)
        }))
    }

    fn reset(&mut self, _token: ReplyToken) -> ResetReply {
        self.function.reset();
        if !mutant!(UnitSurvivesReset) {
            self.bus.reset_unit();
        }
        ResetReply::Done
    }

    fn disconnected(&mut self) {
        self.function.reset();
        if !mutant!(UnitSurvivesDisconnect) {
            self.bus.reset_unit();
        }
        let retired = self.maps.unmap_all();
        self.bus.unit_memory_changed();
        drop(retired);
        (self.placed, self.reports) = (None, 0);
        self.connected = false;
        self.events.send(HostEvent::Disconnected(self.bus.iommu_bdf()));
    }
}
