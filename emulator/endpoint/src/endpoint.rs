//! What an endpoint's threads share: its engines, the thread that answers PCI accesses, and whichever thread is in
//! the IOMMU.
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use svadev_fabric::{Bdf, InvalidateAck, InvalidateRequest, PageGroupResponse, SourceId};
use svadev_memory::DeviceMemory;
use svadev_mirror::Face;
use svadev_mutation::mutant;

use crate::counters::{Counters, EngineCounters};
use crate::device::{Mail, Ports};
use crate::engine_side::{self, EngineSide};
use crate::gate::Gate;
use crate::mailbox::{Invalidation, Mailbox};
use crate::obligation::Answer;
use crate::page_request::{PrgTable, PriStatus};

/// What is fixed about an endpoint when it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointSettings {
    /// Its requester ID.
    pub bdf: Bdf,
    /// Who translates its addresses.
    pub source: SourceId,
    /// Engines, at least 1. Each has a device TLB of its own.
    pub engines: u8,
    /// Device-TLB entries of one engine; rounded up to a power of two.
    pub tlb_entries: usize,
    /// Page requests sent together when pages of one access are missing, 1 to
    /// [`MAX_GROUP_PAGES`](crate::MAX_GROUP_PAGES). 1 never asks ahead.
    pub group_pages: u16,
    /// How long to wait for a page group response before the access fails, ns.
    pub page_request_timeout_ns: u64,
    /// Tell the IOMMU of each use of a device-TLB entry (`Upstream::audit_use`). Slow.
    pub audit: bool,
}

impl EndpointSettings {
    fn validate(&self) {
        assert!(self.engines > 0, "a function has at least one engine");
        assert!((1..=crate::MAX_GROUP_PAGES).contains(&usize::from(self.group_pages)), "group pages out of range");
        assert!(self.page_request_timeout_ns > 0, "a wait needs a limit");
    }
}

/// The part of a function that all of its threads share.
pub struct Endpoint<D: Mail> {
    settings: EndpointSettings,
    ports: Box<dyn Ports>,
    engines: Box<[EngineSide<D>]>,
    prg: PrgTable,
    gate: AtomicU32,
    counters: Box<[Arc<EngineCounters>]>,
    mirror: Arc<Face>,
    device_memory: Arc<OnceLock<Arc<DeviceMemory>>>,
}

impl<D: Mail> fmt::Debug for Endpoint<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl<D: Mail> Endpoint<D> {
    /// An endpoint that may send nothing yet. `mail` makes the device's part of a mailbox, empty. Panics if a setting
    /// is out of range.
    pub fn new(settings: EndpointSettings, ports: Box<dyn Ports>, mail: impl Fn() -> D) -> Self {
        settings.validate();
        let engines = usize::from(settings.engines);
        Self {
            settings,
            ports,
            engines: (0..engines).map(|_| EngineSide::new(mail())).collect(),
            prg: PrgTable::new(engines),
            gate: AtomicU32::new(0),
            counters: (0..engines).map(|_| Arc::default()).collect(),
            mirror: Arc::new(Face::new(engines)),
            device_memory: Arc::default(),
        }
    }

    /// The requester ID.
    pub fn bdf(&self) -> Bdf {
        self.settings.bdf
    }

    /// What was fixed when the endpoint was made.
    pub fn settings(&self) -> &EndpointSettings {
        &self.settings
    }

    /// How many engines it has.
    pub fn engines(&self) -> usize {
        self.engines.len()
    }

    /// What the endpoint did so far.
    pub fn counters(&self) -> Counters {
        Counters::sum(self.counters.iter().map(|counters| &**counters))
    }

    /// The counters of one engine, which that engine alone adds to.
    pub fn engine_counters(&self, engine: usize) -> &Arc<EngineCounters> {
        &self.counters[engine]
    }

    /// One engine's mailbox and handshake.
    pub fn side(&self, engine: usize) -> &EngineSide<D> {
        &self.engines[engine]
    }

    /// What its threads share of the mirror.
    pub fn mirror(&self) -> &Arc<Face> {
        &self.mirror
    }

    /// The device's memory, once it is known. Without any, no address leads there.
    pub fn device_memory(&self) -> &Arc<OnceLock<Arc<DeviceMemory>>> {
        &self.device_memory
    }

    /// The page request groups.
    pub fn prg(&self) -> &PrgTable {
        &self.prg
    }

    /// What configuration space allows now.
    #[inline]
    pub fn gate(&self) -> Gate {
        Gate::from_bits(self.gate.load(Ordering::Acquire))
    }

    /// What the PRI status register has to show; its events are taken.
    pub fn take_page_request_status(&self) -> PriStatus {
        self.prg.take_status()
    }

    /// PRI *Reset* (PCIe 6.0 §10.5.2.2): forgets the outstanding page requests.
    pub fn reset_page_requests(&self) {
        self.prg.reset(|engine, index| self.tell_answered(engine, index));
    }

    fn tell_answered(&self, engine: usize, index: usize) {
        self.post(engine, |mailbox| mailbox.answered[index / 64] |= 1 << (index % 64));
    }

    /// Invalidate Request (PCIe 6.0 §10.3.1), from any thread, with the IOMMU's lock held. `Done` where every engine is
    /// asleep; otherwise the engine that is last to empty its mailbox calls `Upstream::invalidate_complete`, once.
    pub fn invalidate(&self, request: InvalidateRequest) -> InvalidateAck {
        engine_side::invalidate(&self.engines, request.into(), Answer::Invalidate(request.tag))
    }

    /// The memory map changed: windows that were taken from [`GuestMemory`](svadev_memory::GuestMemory) before are
    /// dropped. Call it *after* the map was changed and before the memory is unmapped. `Done`: no access through them
    /// is under way; `Pending`: [`Ports::memory_released`] will say so.
    pub fn memory_changed(&self, token: u64) -> InvalidateAck {
        if mutant!(MemoryChangeDropsNothing) {
            return InvalidateAck::Done;
        }
        engine_side::invalidate(&self.engines, Invalidation::ALL, Answer::Memory(token))
    }

    /// PRG Response message (PCIe 6.0 §10.4.2), from any thread, with the IOMMU's lock held.
    pub fn page_group_response(&self, response: PageGroupResponse) {
        if let Some(engine) = self.prg.answer(response, |engine| self.credit(engine)) {
            self.tell_answered(engine, response.prg_index.get().into());
        }
    }

    /// Puts something into an engine's mailbox that it must act on, and wakes it if it sleeps.
    pub fn post(&self, engine: usize, put: impl FnOnce(&mut Mailbox<D>)) {
        if !self.engines[engine].post(put) {
            self.ports.wake(engine);
        }
    }

    /// Tells an engine whose accesses wait in line for page requests that it may ask again. Called under the PRG
    /// table's lock.
    pub fn credit(&self, engine: usize) {
        self.post(engine, |mailbox| mailbox.credit = true);
    }

    /// Sets what configuration space allows. A change drops every translation (for ATS: PCIe 6.0 §10.5.1.3).
    pub fn configure(&self, gate: Gate, pri_enabled: bool, pri_allocation: u32) {
        let old = Gate::from_bits(self.gate.swap(gate.to_bits(), Ordering::AcqRel));
        if old != gate {
            for engine in 0..self.engines.len() {
                self.post(engine, |mailbox| mailbox.invalidate(Invalidation::ALL));
            }
        }
        self.prg.configure(pri_enabled, pri_allocation, |engine| self.credit(engine));
    }

    /// Tells the world that no access through the memory map from before the change with this token is under way.
    pub fn memory_released(&self, token: u64) {
        self.ports.memory_released(token);
    }
}
