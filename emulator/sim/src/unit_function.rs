//! The IOMMU's function and its VMM: the unit's registers as the kernel reaches them, and the end of the machine.
use std::cell::RefCell;
use std::sync::Arc;

use svadev_host::{Bus, IommuDevice, IommuState};
use svadev_spec::device::BAR_UNIT;
use svadev_spec::pcie::{self, capability};
use svadev_spec::vfio_user::{command, region};
use svadev_spec::vtd::registers::offset;
use svadev_vfio_user::client::{LoopbackClient, config, request};
use svadev_vfio_user::{Device, Server};
use zerocopy::IntoBytes;

use crate::checker::Checker;
use crate::coverage::Group;
use crate::log::Log;
use crate::platform::{Maps, Simulated};

/// Bytes of replies that may wait for the client.
const CAPACITY: usize = 4096;

/// The IOMMU's function, with a client connected.
pub struct UnitFunction {
    /// The way between the functions and the unit.
    pub bus: Arc<Bus<Simulated>>,
    device: RefCell<IommuDevice<Simulated>>,
    server: Server,
    client: LoopbackClient,
    maps: Arc<Maps>,
    /// Bytes of guest memory.
    memory: u64,
    log: Arc<Log>,
}

impl std::fmt::Debug for UnitFunction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UnitFunction").field("bus", &self.bus).finish_non_exhaustive()
    }
}

impl UnitFunction {
    /// Connects to the function and maps `memory` bytes of guest memory.
    pub fn new(
        bus: Arc<Bus<Simulated>>,
        mut device: IommuDevice<Simulated>,
        mut server: Server,
        maps: Arc<Maps>,
        memory: u64,
        log: Arc<Log>,
    ) -> Self {
        let mut client = LoopbackClient::connect(&mut server, CAPACITY);
        let json = r#"{"capabilities":{"max_msg_fds":8}}"#;
        let reply = client.negotiate(&mut server, &mut device, json);
        assert!(reply.is_some_and(|reply| reply.result().is_ok()), "both sides speak the same version");
        let map = request::dma_map(0, memory, 0);
        let reply = client.call(&mut server, &mut device, command::DMA_MAP, map.as_bytes(), Vec::new());
        assert!(reply.is_some_and(|reply| reply.result().is_ok()), "memory is mapped");
        Self { bus, device: RefCell::new(device), server, client, maps, memory, log }
    }

    /// Reads a 32-bit register.
    pub fn read32(&self, at: u64) -> u32 {
        let mut data = [0; 4];
        self.device.borrow_mut().region_read(BAR_UNIT, at, &mut data).expect("registers can be read");
        u32::from_le_bytes(data)
    }

    /// Reads a 64-bit register.
    pub fn read64(&self, at: u64) -> u64 {
        let mut data = [0; 8];
        self.device.borrow_mut().region_read(BAR_UNIT, at, &mut data).expect("registers can be read");
        u64::from_le_bytes(data)
    }

    /// Writes a 32-bit register.
    pub fn write32(&self, at: u64, value: u32) {
        self.device.borrow_mut().region_write(BAR_UNIT, at, &value.to_le_bytes()).expect("registers can be written");
    }

    /// Writes a 64-bit register.
    pub fn write64(&self, at: u64, value: u64) {
        self.device.borrow_mut().region_write(BAR_UNIT, at, &value.to_le_bytes()).expect("registers can be written");
    }

    /// The unit's state. Every function behind it is paused.
    pub fn save(&self) -> IommuState {
        self.device.borrow().save()
    }

    /// Goes on with a unit that was restored from this one's state.
    pub fn replace(
        &mut self,
        bus: Arc<Bus<Simulated>>,
        device: IommuDevice<Simulated>,
        server: Server,
        maps: &Arc<Maps>,
    ) {
        let log = Arc::clone(&self.log);
        *self = Self::new(bus, device, server, Arc::clone(maps), self.memory, log);
    }

    /// The guest initiates a function level reset, which the unit's function does not have.
    fn reset_function_alone(&self) {
        const KEPT: [u64; 4] = [offset::GSTS, offset::FECTL + 8, offset::PECTL + 8, offset::IQT];
        let before = KEPT.map(|at| self.read32(at));
        {
            let device = &mut *self.device.borrow_mut();
            let at = config::capability(capability::PCI_EXPRESS, |at| {
                let mut data = [0; 2];
                device.region_read(region::CONFIG, at, &mut data).map(|()| data)
            });
            let at = at.expect("configuration space can be read").expect("every function has it");
            let at = at + u64::from(pcie::pci_express::DEVICE_CONTROL);
            let initiate = pcie::DeviceControl::new().with_initiate_flr(true);
            device.region_write(region::CONFIG, at, &initiate.into_bits().to_le_bytes()).expect("it is there");
        }
        self.log.count(Group::Path, "reset of the unit's function without effect");
        let kept = before[0] != 0 && KEPT.map(|at| self.read32(at)) == before;
        self.log.check(Checker::ResetAndRelease, kept, || "a reset of its function changes the unit".to_owned());
    }

    /// The machine ends: by a reset message, or a client that goes away. The unit forgets all. Before that, in one of
    /// three ways, the guest tries to reset the unit's function alone, which has no effect.
    pub fn end(&mut self, way: u64) {
        if way == 1 {
            self.reset_function_alone();
        }
        let device = self.device.get_mut();
        match way {
            0 => {
                let reply = self.client.call(&mut self.server, device, command::DEVICE_RESET, &[], Vec::new());
                let answered = reply.is_some_and(|reply| reply.result().is_ok());
                self.log.check(Checker::Transport, answered, || "the unit's reset is not answered".to_owned());
            }
            _ => {
                self.server.disconnect(device);
                let released = self.maps.is_empty() && !self.maps.is_releasing();
                self.log.check(Checker::ResetAndRelease, released, || "the unit keeps memory mapped".to_owned());
            }
        }
        self.log.count(Group::Path, "unit reset");
        for at in [offset::GSTS, offset::FSTS, offset::FECTL + 8, offset::PECTL + 8] {
            let value = self.read32(at);
            self.log.check(Checker::ResetAndRelease, value == 0, || format!("{at:#x} is {value:#x} after a reset"));
        }
        for at in [offset::IQH, offset::IQT, offset::IQA, offset::RTADDR, offset::PQH, offset::PQT, offset::PQA] {
            let value = self.read64(at);
            self.log.check(Checker::ResetAndRelease, value == 0, || format!("{at:#x} is {value:#x} after a reset"));
        }
    }
}
