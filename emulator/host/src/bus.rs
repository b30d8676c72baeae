//! The wires between the functions and the unit: who is behind which BDF, and the unit's one mutex.
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use svadev_accelerator::FunctionShared;
use svadev_fabric::{
    AtsError, Bdf, CachedUse, Downstream, InvalidateAck, InvalidateRequest, InvalidateTag, Msi, PageGroupResponse,
    PageRequest, PageRequestOutcome, Translation, TranslationRequest, Upstream,
};
use svadev_iommu::{AuditConfig, AuditCounters, Finding, Unit, UnitConfig};
use svadev_memory::MemoryMap;

use crate::audit_clock::AuditClock;
use crate::link::Link;

/// One accelerator function, as the unit reaches it.
struct Port {
    bdf: Bdf,
    shared: Arc<FunctionShared>,
    link: Arc<Link>,
}

/// The unit, and what it can reach.
pub(crate) struct Bus {
    /// Taken first of all locks, by socket threads (registers) and engine threads (`Upstream`); held for a walk or a
    /// batch of descriptors, never across a wait (`docs/locking.md`).
    unit: Mutex<Unit<Arc<MemoryMap>>>,
    /// The function whose BAR holds the unit's registers.
    iommu: Bdf,
    /// Set once, before any thread that could use it starts.
    ports: OnceLock<Ports>,
    /// Only with an auditor.
    audit_clock: Option<Arc<AuditClock>>,
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bus").field("iommu", &self.iommu).finish_non_exhaustive()
    }
}

/// What the unit reaches: its `Downstream`.
struct Ports(Vec<Port>);

impl Bus {
    /// A bus with a unit and nobody on it. `iommu` is the function that carries the unit, `memory` that function's view of
    /// guest memory.
    pub(crate) fn new(config: UnitConfig, iommu: Bdf, memory: Arc<MemoryMap>) -> Self {
        Self { unit: Mutex::new(Unit::new(config, memory)), iommu, ports: OnceLock::new(), audit_clock: None }
    }

    /// The function that carries the unit.
    pub(crate) fn iommu_bdf(&self) -> Bdf {
        self.iommu
    }

    /// Puts the accelerator functions on the bus. Once, before any of them does anything.
    pub(crate) fn connect(&self, functions: impl IntoIterator<Item = (Arc<FunctionShared>, Arc<Link>)>) {
        let ports = functions.into_iter().map(|(shared, link)| Port { bdf: shared.bdf(), shared, link }).collect();
        assert!(self.ports.set(Ports(ports)).is_ok(), "the bus is connected once");
    }

    /// A guest's read of the unit's registers.
    pub(crate) fn read_register(&self, offset: u64, data: &mut [u8]) {
        self.unit().read_register(offset, data);
    }

    /// A guest's write to the unit's registers.
    pub(crate) fn write_register(&self, offset: u64, data: &[u8]) {
        self.unit().write_register(offset, data, self.ports());
    }

    /// A function's bus mastering was turned off. The VMM drops what interrupts were still on their way through it, and
    /// whoever waits for one would wait for ever: those whose cause is still pending are sent again, another way.
    pub(crate) fn repeat_interrupts(&self) {
        self.unit().repeat_interrupts(self.ports());
    }

    /// The unit as after power-on: its own function was reset, or the VMM is gone.
    pub(crate) fn reset_unit(&self) {
        self.unit().reset();
    }

    /// Waits until nobody is inside the unit, and lets it forget the map that it walked last. What left the map before the call is not
    /// used by the unit afterwards: it keeps no window beyond its mutex (L10).
    pub(crate) fn unit_memory_changed(&self) {
        self.unit().memory_changed();
    }

    /// Gives up on the invalidations of a function that `overdue` finds among those that are outstanding (VT-d 4.1 §6.5.2.10).
    pub(crate) fn give_up_on(
        &self,
        overdue: impl FnOnce(&mut dyn Iterator<Item = (InvalidateTag, Bdf)>) -> Option<Bdf>,
    ) {
        let mut unit = self.unit();
        let late = overdue(&mut unit.outstanding_invalidations());
        if let Some(function) = late {
            tracing::warn!(%function, "a device-TLB invalidation is not acknowledged: the unit reports a time-out (FSTS.ITE)");
            unit.invalidate_timed_out(function, self.ports());
        }
    }

    /// The unit's counters as they are now.
    pub(crate) fn unit_counters(&self) -> svadev_iommu::Counters {
        self.unit().counters().clone()
    }

    /// Checks what is cached from now on; before anything is.
    pub(crate) fn start_audit(&mut self, config: AuditConfig, clock: Arc<AuditClock>) {
        self.unit().start_audit(config);
        self.audit_clock = Some(clock);
    }

    /// A slice of the auditor's work, and what it and others found meanwhile.
    pub(crate) fn audit_slice(&self, budget: usize) -> Vec<Finding> {
        let mut unit = self.unit();
        unit.audit_slice(budget);
        unit.take_audit_findings()
    }

    /// The function's device TLB is empty or out of use, not because the guest said so to the unit.
    pub(crate) fn audit_forget(&self, function: Bdf) {
        if self.audit_clock.is_some() {
            self.unit().audit_forget(function);
        }
    }

    /// What the auditor did, if there is one.
    pub(crate) fn audit_counters(&self) -> Option<AuditCounters> {
        self.unit().audit_counters()
    }

    fn unit(&self) -> MutexGuard<'_, Unit<Arc<MemoryMap>>> {
        let mut unit = self.unit.lock().expect("the unit does not panic on guest data: a holder that did is our bug");
        if let Some(clock) = &self.audit_clock {
            unit.audit_at(clock.now_ns());
        }
        unit
    }

    fn ports(&self) -> &Ports {
        self.ports.get().expect("connected before any thread starts")
    }
}

impl Upstream for Bus {
    fn translate(&self, request: TranslationRequest) -> Result<Translation, AtsError> {
        self.unit().translate(request, self.ports())
    }

    fn page_request(&self, request: PageRequest) -> PageRequestOutcome {
        self.unit().page_request(request, self.ports())
    }

    fn invalidate_complete(&self, requester: Bdf, tag: InvalidateTag) {
        self.unit().invalidate_complete(requester, tag, self.ports());
    }

    fn audit_use(&self, used: CachedUse) {
        let CachedUse { requester, pasid, iova, gpa, access } = used;
        self.unit().audit_use(requester, pasid, iova, gpa.0, access);
    }
}

impl Ports {
    fn find(&self, bdf: Bdf) -> Option<&Port> {
        self.0.iter().find(|port| port.bdf == bdf)
    }
}

impl Downstream for Ports {
    fn invalidate(&self, to: Bdf, request: InvalidateRequest) -> InvalidateAck {
        match self.find(to) {
            Some(port) => port.shared.invalidate(request),
            None => InvalidateAck::Done,
        }
    }

    fn page_group_response(&self, to: Bdf, response: PageGroupResponse) {
        if let Some(port) = self.find(to) {
            port.shared.page_group_response(response);
        }
    }

    fn message_interrupt(&self, via: Option<Bdf>, msi: Msi) {
        // A message interrupt is a memory write, so it needs a function whose bus mastering is on. The one whose traffic
        // caused it has that; where there is none, any will do, since the guest sees only address and data.
        let preferred = via.and_then(|bdf| self.find(bdf)).filter(|port| port.link.can_master());
        let port = preferred.or_else(|| self.0.iter().find(|port| port.link.can_master()));
        match port {
            Some(port) => port.link.message_interrupt(msi),
            None => tracing::debug!(?msi, "interrupt lost: no function behind the unit has bus mastering on"),
        }
    }
}
