//! The way between the functions and the unit: which function has which BDF, and the unit's one mutex.
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use svadev_accelerator::{Engine, FunctionShared};
use svadev_endpoint::On;
use svadev_fabric::{
    AtsError, Bdf, CachedUse, Delivery, Downstream, InvalidateAck, InvalidateRequest, InvalidateTag, Msi,
    PageGroupResponse, PageRequest, PageRequestOutcome, Translation, TranslationRequest, Upstream,
};
use svadev_iommu::{AuditConfig, AuditCounters, Finding, Unit, UnitConfig};
use svadev_mutation::mutant;

use crate::audit_clock::AuditClock;
use crate::link::Link;
use crate::platform::{Platform, Tap};

/// One accelerator function, as the unit reaches it.
struct Port {
    bdf: Bdf,
    shared: Arc<FunctionShared>,
    link: Arc<Link>,
}

/// The unit, and what it can reach.
pub struct Bus<P: Platform> {
    /// The first lock in the order. Socket threads take it for registers, engine threads for `Upstream`. It is held for
    /// a walk or a batch of descriptors, never across a wait (`docs/locking.md`).
    unit: Mutex<Unit<Arc<P::Memory>>>,
    /// The function whose BAR holds the unit's registers.
    iommu: Bdf,
    /// Set once, before any thread that could use it starts.
    ports: OnceLock<Ports>,
    /// Only with an auditor.
    audit_clock: Option<Arc<AuditClock>>,
    tap: P::Tap,
}

impl<P: Platform> std::fmt::Debug for Bus<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bus").field("iommu", &self.iommu).finish_non_exhaustive()
    }
}

/// An engine of a machine.
pub type HostEngine<P> = Engine<On<<P as Platform>::Memory, Bus<P>>>;

/// The functions that the unit reaches.
struct Ports(Vec<Port>);

impl<P: Platform> Bus<P> {
    /// A bus with a unit and nobody on it. `iommu` is the function that carries the unit, `memory` that function's view
    /// of guest memory.
    pub(crate) fn new(config: UnitConfig, iommu: Bdf, memory: Arc<P::Memory>, tap: P::Tap) -> Self {
        let unit = Mutex::new(Unit::new(config, memory));
        Self { unit, iommu, ports: OnceLock::new(), audit_clock: None, tap }
    }

    /// The function that carries the unit.
    pub fn iommu_bdf(&self) -> Bdf {
        self.iommu
    }

    /// Puts the accelerator functions on the bus. Once, before any of them does anything.
    pub(crate) fn connect(&self, functions: impl IntoIterator<Item = (Arc<FunctionShared>, Arc<Link>)>) {
        let ports = functions.into_iter().map(|(shared, link)| Port { bdf: shared.bdf(), shared, link }).collect();
        assert!(self.ports.set(Ports(ports)).is_ok(), "the bus is connected once");
    }

    /// A guest's read of the unit's registers.
    pub fn read_register(&self, offset: u64, data: &mut [u8]) {
        self.inside(|unit, _| unit.read_register(offset, data));
    }

    /// A guest's write to the unit's registers.
    pub fn write_register(&self, offset: u64, data: &[u8]) {
        self.inside_with_queue(|unit, down| unit.write_register(offset, data, down));
    }

    /// Carries out what is left in an invalidation queue that was too long for one call, piece by piece. Between two
    /// pieces the unit's lock is free, so that engines can translate. The guest need not do anything for it.
    pub fn continue_queue(&self) {
        let continue_queue = |unit: &mut Unit<_>, down: &Down<'_, P>| {
            unit.continue_queue(down);
            unit.queue_is_unfinished()
        };
        while !mutant!(LongQueueForgotten) && self.inside(continue_queue) {
            // The lock is not fair: a thread that waits for it must get a chance to take it.
            std::thread::yield_now();
        }
    }

    /// [`Self::inside`] for calls that can start the invalidation queue: carries out all of it.
    fn inside_with_queue(&self, call: impl FnOnce(&mut Unit<Arc<P::Memory>>, &Down<'_, P>)) {
        let unfinished = self.inside(|unit, down| {
            call(unit, down);
            unit.queue_is_unfinished()
        });
        if unfinished {
            std::thread::yield_now();
            self.continue_queue();
        }
    }

    /// Sends interrupts again whose cause is still pending. Called when a function's bus mastering was turned off: the
    /// VMM drops interrupts that were on their way through that function, and the guest would wait for them for ever.
    pub fn repeat_interrupts(&self) {
        self.inside(|unit, down| unit.repeat_interrupts(down));
    }

    /// Sends the interrupts that no function could carry. Called when a function's bus mastering was turned on.
    pub fn retry_interrupts(&self) {
        self.inside(|unit, down| unit.retry_events(down));
    }

    /// Resets the unit to its state after power-on. Called when the VMM reset the machine, or is gone.
    pub fn reset_unit(&self) {
        self.unit().reset();
    }

    /// Makes the unit forget the memory map that it walked last. After the call, the unit does not use memory that left
    /// the map before it: it keeps no window beyond its mutex (L10).
    pub fn unit_memory_changed(&self) {
        self.unit().memory_changed();
    }

    /// Sends interrupts that could not be sent before, and gives up on the invalidations of a function that `overdue`
    /// finds among the outstanding ones (VT-d 4.1 §6.5.2.10). Called by a clock now and then.
    pub fn give_up_on(&self, overdue: impl FnOnce(&mut dyn Iterator<Item = (InvalidateTag, Bdf)>) -> Option<Bdf>) {
        self.inside(|unit, down| {
            // A VMM that did not read for a while may read now.
            unit.retry_events(down);
            let late = overdue(&mut unit.outstanding_invalidations());
            if let Some(function) = late {
                tracing::warn!(%function, "a device-TLB invalidation is not acknowledged: the unit reports a time-out (FSTS.ITE)");
                unit.invalidate_timed_out(function, down);
            }
        });
    }

    /// The unit's counters as they are now.
    pub fn unit_counters(&self) -> svadev_iommu::Counters {
        self.unit().counters().clone()
    }

    /// Starts the auditor, before anything is cached.
    pub(crate) fn start_audit(&mut self, config: AuditConfig, clock: Arc<AuditClock>) {
        self.unit().start_audit(config);
        self.audit_clock = Some(clock);
    }

    /// Does a slice of the auditor's work. Returns what was found since the last slice.
    pub(crate) fn audit_slice(&self, budget: usize) -> Vec<Finding> {
        let mut unit = self.unit();
        unit.audit_slice(budget);
        unit.take_audit_findings()
    }

    /// Tells the auditor that a function's device TLB is empty or out of use, for a reason that the unit does not see.
    pub(crate) fn audit_forget(&self, function: Bdf) {
        if self.audit_clock.is_some() {
            self.unit().audit_forget(function);
        }
    }

    /// What the auditor did, if there is one.
    pub(crate) fn audit_counters(&self) -> Option<AuditCounters> {
        self.unit().audit_counters()
    }

    fn unit(&self) -> MutexGuard<'_, Unit<Arc<P::Memory>>> {
        let mut unit = self.unit.lock().expect("the unit does not panic on guest data: a holder that did is our bug");
        if let Some(clock) = &self.audit_clock {
            unit.audit_at(clock.now_ns());
        }
        unit
    }

    /// Calls into the unit with its lock held. Every call that may send a message comes through here.
    #[inline]
    pub fn inside<T>(&self, call: impl FnOnce(&mut Unit<Arc<P::Memory>>, &Down<'_, P>) -> T) -> T {
        let mut unit = self.unit();
        self.tap.inside(&mut unit, |unit| call(unit, &Down(self)))
    }

    /// Who watches the messages.
    pub fn tap(&self) -> &P::Tap {
        &self.tap
    }

    fn ports(&self) -> &Ports {
        self.ports.get().expect("connected before any thread starts")
    }
}

impl<P: Platform> Upstream for Bus<P> {
    fn translate(&self, request: TranslationRequest) -> Result<Translation, AtsError> {
        self.tap.translate(request, |request| self.inside(|unit, down| unit.translate(request, down)))
    }

    fn page_request(&self, request: PageRequest) -> PageRequestOutcome {
        self.tap.page_request(request, |request| self.inside(|unit, down| unit.page_request(request, down)))
    }

    fn invalidate_complete(&self, requester: Bdf, tag: InvalidateTag) {
        let next = |requester, tag| self.inside_with_queue(|unit, down| unit.invalidate_complete(requester, tag, down));
        self.tap.invalidate_complete(requester, tag, next);
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

/// The unit's way to the functions, while its lock is held.
pub struct Down<'a, P: Platform>(&'a Bus<P>);

impl<P: Platform> Downstream for Down<'_, P> {
    fn invalidate(&self, to: Bdf, request: InvalidateRequest) -> InvalidateAck {
        match self.0.ports().find(to) {
            Some(port) => self.0.tap.invalidate(to, request, |request| port.shared.invalidate(request)),
            None => InvalidateAck::Done,
        }
    }

    fn page_group_response(&self, to: Bdf, response: PageGroupResponse) {
        if let Some(port) = self.0.ports().find(to) {
            self.0.tap.page_group_response(to, response, |response| port.shared.page_group_response(response));
        }
    }

    fn message_interrupt(&self, via: Option<Bdf>, msi: Msi) -> Delivery {
        // A message interrupt is a memory write, so it needs a function whose bus mastering is on. If the function
        // whose traffic caused it has that, it is sent there. Otherwise any will do: the guest sees only address and
        // data.
        let ports = self.0.ports();
        let preferred = via.and_then(|bdf| ports.find(bdf)).filter(|port| port.link.can_master());
        let may_send = |port: &&Port| port.link.can_master() || mutant!(UnitInterruptWithoutBusMaster);
        let port = preferred.or_else(|| ports.0.iter().find(may_send));
        self.0.tap.message_interrupt(port.map(|port| port.bdf), msi);
        match port {
            Some(port) => port.link.message_interrupt(msi),
            None => {
                tracing::debug!(?msi, "interrupt held: no function behind the unit has bus mastering on");
                Delivery::Held
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;
    use svadev_memory::{GuestAddress, GuestMemory, Ram};
    use svadev_spec::vtd::registers::offset;
    use svadev_vfio_user::{DmaMap, DmaUnmap};

    use super::*;
    use crate::platform::{Doorbells, GuestMaps, Wake};

    /// A platform for a bus alone: nobody asks it for anything.
    struct Nothing;

    impl Platform for Nothing {
        type Memory = Ram;
        type Maps = Self;
        type Waker = Self;
        type Tap = ();

        fn memory(&mut self, _: Bdf) -> (Arc<Ram>, Self) {
            unreachable!("the bus has its memory")
        }
        fn waker(&mut self, _: Bdf, _: usize) -> anyhow::Result<Arc<Self>> {
            unreachable!("there is no engine")
        }
        fn doorbells(&mut self, _: u16) -> anyhow::Result<Doorbells> {
            unreachable!("there is no function")
        }
    }

    impl GuestMaps for Nothing {
        type Retired = ();

        fn map(&self, _: DmaMap) -> Result<(), Errno> {
            Ok(())
        }
        fn unmap(&self, _: DmaUnmap) -> Result<(), Errno> {
            Ok(())
        }
        fn unmap_all(&self) {}
        fn bytes((): &()) -> u64 {
            0
        }
    }

    impl Wake for Nothing {
        fn wake(&self) {}
    }

    #[test]
    fn a_queue_too_long_for_one_call_is_carried_out_without_another_write() {
        const QUEUE: u64 = 0x8_0000;
        const BYTES: u64 = 0x8_0000;
        let ram = Arc::new(Ram::new(1 << 20).unwrap());
        let store = |at: u64, value: u64| ram.write(GuestAddress(at), &value.to_le_bytes()).unwrap();
        // IOTLB invalidations of a domain, and a wait that writes 7 to 0x1000.
        for at in (QUEUE..QUEUE + BYTES - 32).step_by(32) {
            store(at, 2 | 2 << 4 | 9 << 16);
        }
        store(QUEUE + BYTES - 64, 5 | 1 << 5 | 7 << 32);
        store(QUEUE + BYTES - 56, 0x1000);
        let iommu = Bdf::new(0, 5, 0).unwrap();
        let bus = Bus::<Nothing>::new(UnitConfig::default(), iommu, Arc::clone(&ram), ());
        bus.connect([]);
        bus.write_register(offset::IQA, &(QUEUE | 1 << 11 | 7).to_le_bytes());
        bus.write_register(offset::GCMD, &(1u32 << 26).to_le_bytes());
        bus.write_register(offset::IQT, &(BYTES - 32).to_le_bytes());
        let mut head = [0; 8];
        bus.read_register(offset::IQH, &mut head);
        assert_eq!(u64::from_le_bytes(head), BYTES - 32);
        assert_eq!(ram.load_u64(GuestAddress(0x1000)).unwrap(), 7);
    }
}
