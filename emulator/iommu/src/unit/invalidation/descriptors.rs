//! What each of the nine descriptors does (§6.5.2).
use svadev_fabric::{
    Bdf, Downstream, InvalidateAck, InvalidateRange, InvalidateRequest, Iova, PageGroupResponse, Pasid, PrgIndex,
    ResponseCode,
};
use svadev_memory::{GuestAddress, GuestMemory};
use svadev_mutation::mutant;
use svadev_spec::vtd::invalidation::{
    ContextCache, DescriptorHeader, DeviceTlb, DeviceTlbAddress, InvalidateAddress, Iotlb, PageGroupResponseIndex,
    PasidCache, PasidDeviceTlb, PasidDeviceTlbAddress, PasidIotlb, QueueError, Wait, context_granularity,
    descriptor_type, iotlb_granularity, pasid_cache_granularity, pasid_iotlb_granularity, response_code,
};
use svadev_spec::vtd::registers::translation_table_mode;

use crate::cache::CacheTag;
use crate::config::MAX_ADDRESS_MASK;
use crate::gate::Point;
use crate::interrupts::EventKind;
use crate::invalidation::Parked;
use crate::observe::Scope;
use crate::unit::Unit;

/// What became of a descriptor.
pub(crate) enum Step {
    /// It was carried out.
    Done,
    /// It must be tried again when what it waits for has come.
    Park(Parked),
}

impl<M: GuestMemory> Unit<M> {
    fn report_invalidation(&mut self, scope: Scope) {
        let by_register = !self.state.global.queued_invalidation_enable();
        self.report(|observer| {
            observer.invalidated(scope);
            if by_register {
                // A register-based command is complete when its start bit is clear again (§6.5.1).
                observer.completed();
            }
        });
    }

    pub(in crate::unit) fn scalable(&self) -> bool {
        self.state.root.translation_table_mode() == translation_table_mode::SCALABLE
    }

    pub(super) fn carry_out(&mut self, [low, high]: [u64; 2], ports: &dyn Downstream) -> Result<Step, QueueError> {
        let header = DescriptorHeader::from(low);
        if header.type_high() != 0 {
            return Err(QueueError::InvalidType);
        }
        let wide = self.state.queue.address.descriptor_width();
        match header.type_low() {
            descriptor_type::CONTEXT_CACHE => self.context_cache(low.into(), high),
            descriptor_type::IOTLB => self.iotlb_descriptor(low.into(), high.into()),
            descriptor_type::DEVICE_TLB => self.device_tlb(low.into(), high.into(), ports),
            descriptor_type::INTERRUPT_ENTRY_CACHE => {
                // Without interrupt remapping (ECAP.IR) there is nothing to drop.
                self.counters.invalidations_interrupt += 1;
                Ok(Step::Done)
            }
            descriptor_type::WAIT => self.wait(low.into(), high, ports),
            descriptor_type::PASID_IOTLB
            | descriptor_type::PASID_CACHE
            | descriptor_type::PASID_DEVICE_TLB
            | descriptor_type::PAGE_GROUP_RESPONSE
                if !wide =>
            {
                Err(QueueError::InvalidWidth)
            }
            descriptor_type::PASID_IOTLB => self.pasid_iotlb(low.into(), high.into()),
            descriptor_type::PASID_CACHE => self.pasid_cache(low.into(), high),
            descriptor_type::PASID_DEVICE_TLB => self.pasid_device_tlb(low.into(), high.into(), ports),
            descriptor_type::PAGE_GROUP_RESPONSE => self.page_group_response(low.into(), high.into(), ports),
            // The page stream response (0xa) went away with revision 3.0.
            _ => Err(QueueError::InvalidType),
        }
    }

    /// Context-cache invalidate (§6.5.2.1).
    fn context_cache(&mut self, low: ContextCache, high: u64) -> Result<Step, QueueError> {
        reserved(low.reserved0() != 0 || low.reserved1() != 0 || low.reserved2() != 0 || high != 0)?;
        self.invalidate_contexts(low.granularity(), low.source_id(), low.function_mask())?;
        Ok(Step::Done)
    }

    /// Fails for a reserved granularity.
    pub(super) fn invalidate_contexts(
        &mut self,
        granularity: u8,
        source_id: u16,
        function_mask: u8,
    ) -> Result<(), QueueError> {
        match granularity {
            // A domain's entries cannot be found without a scan, and scalable mode ignores the domain: all are
            // invalidated.
            context_granularity::GLOBAL | context_granularity::DOMAIN => {
                self.entries.invalidate_contexts(&mut self.clock);
            }
            context_granularity::DEVICE => {
                if !mutant!(ContextCacheInvalidationDoesNothing) {
                    self.entries.invalidate_source(source_id, function_mask, &mut self.clock);
                }
            }
            _ => return Err(QueueError::Reserved),
        }
        self.report_invalidation(match granularity {
            context_granularity::DEVICE => Scope::Source { source_id, function_mask },
            _ => Scope::Contexts,
        });
        Ok(())
    }

    /// PASID-cache invalidate (§6.5.2.2).
    fn pasid_cache(&mut self, low: PasidCache, high: u64) -> Result<Step, QueueError> {
        reserved(low.reserved0() != 0 || low.reserved1() != 0 || low.reserved2() != 0 || high != 0)?;
        let scope = match low.granularity() {
            pasid_cache_granularity::DOMAIN => {
                self.entries.invalidate_pasid_domain(low.domain_id(), &mut self.clock);
                Scope::PasidsOfDomain(low.domain_id())
            }
            pasid_cache_granularity::PASID if mutant!(PasidCacheInvalidationDoesNothing) => {
                Scope::Pasid { domain_id: low.domain_id(), pasid: low.pasid() }
            }
            pasid_cache_granularity::PASID => {
                self.entries.invalidate_pasid(low.domain_id(), low.pasid(), &mut self.clock);
                Scope::Pasid { domain_id: low.domain_id(), pasid: low.pasid() }
            }
            pasid_cache_granularity::GLOBAL => {
                self.entries.invalidate_pasids(&mut self.clock);
                Scope::Pasids
            }
            _ => return Err(QueueError::Reserved),
        };
        self.report_invalidation(scope);
        Ok(Step::Done)
    }

    /// IOTLB invalidate (§6.5.2.3).
    fn iotlb_descriptor(&mut self, low: Iotlb, high: InvalidateAddress) -> Result<Step, QueueError> {
        reserved(low.reserved0() || low.reserved1() != 0 || low.reserved2() != 0 || high.reserved() != 0)?;
        self.invalidate_iotlb(low.granularity(), low.domain_id(), high)?;
        Ok(Step::Done)
    }

    /// Fails for a reserved granularity, or an address mask beyond CAP.MAMV.
    pub(super) fn invalidate_iotlb(
        &mut self,
        granularity: u8,
        domain_id: u16,
        address: InvalidateAddress,
    ) -> Result<(), QueueError> {
        let scope = match granularity {
            iotlb_granularity::GLOBAL => {
                self.caches.invalidate_all(&mut self.clock);
                Scope::Iotlb
            }
            iotlb_granularity::DOMAIN => {
                self.caches.invalidate_domain(domain_id, &mut self.clock);
                Scope::Domain(domain_id)
            }
            iotlb_granularity::PAGE if address.address_mask() <= MAX_ADDRESS_MASK => {
                let space = CacheTag::of_domain(domain_id);
                let iova = address.frame() << 12;
                let hint = address.invalidation_hint();
                self.caches.invalidate_pages(space, iova, address.address_mask(), hint, &mut self.clock);
                Scope::Pages { tag: space, iova, pages_log2: address.address_mask(), leaf_only: hint }
            }
            _ => return Err(QueueError::Reserved),
        };
        self.report_invalidation(scope);
        Ok(())
    }

    /// PASID-based IOTLB invalidate (§6.5.2.4).
    fn pasid_iotlb(&mut self, low: PasidIotlb, high: InvalidateAddress) -> Result<Step, QueueError> {
        reserved(low.reserved0() != 0 || low.reserved1() != 0 || low.reserved2() != 0 || high.reserved() != 0)?;
        let space = CacheTag::new(low.domain_id(), low.pasid());
        let scope = match low.granularity() {
            pasid_iotlb_granularity::PASID => {
                self.caches.invalidate_pasid(space, &mut self.clock);
                Scope::Tag(space)
            }
            pasid_iotlb_granularity::PAGE if high.address_mask() <= MAX_ADDRESS_MASK => {
                let (iova, hint) = (high.frame() << 12, high.invalidation_hint());
                self.caches.invalidate_pages(space, iova, high.address_mask(), hint, &mut self.clock);
                Scope::Pages { tag: space, iova, pages_log2: high.address_mask(), leaf_only: hint }
            }
            _ => return Err(QueueError::Reserved),
        };
        self.report_invalidation(scope);
        Ok(Step::Done)
    }

    /// Device-TLB invalidate (§6.5.2.5). The physical function's id matters only to virtual functions; there are none.
    fn device_tlb(
        &mut self,
        low: DeviceTlb,
        high: DeviceTlbAddress,
        ports: &dyn Downstream,
    ) -> Result<Step, QueueError> {
        reserved(low.reserved0() != 0 || low.reserved1() != 0 || low.reserved2() != 0 || high.reserved() != 0)?;
        let range = device_tlb_range(high.size(), high.frame());
        Ok(self.invalidate_device(Bdf(low.source_id()), None, false, range, ports))
    }

    /// PASID-based device-TLB invalidate (§6.5.2.6).
    fn pasid_device_tlb(
        &mut self,
        low: PasidDeviceTlb,
        high: PasidDeviceTlbAddress,
        ports: &dyn Downstream,
    ) -> Result<Step, QueueError> {
        reserved(high.reserved() != 0)?;
        let range = device_tlb_range(high.size(), high.frame());
        let pasid = Pasid::from_low_bits(low.pasid().into());
        Ok(self.invalidate_device(Bdf(low.source_id()), Some(pasid), high.global(), range, ports))
    }

    fn invalidate_device(
        &mut self,
        to: Bdf,
        pasid: Option<Pasid>,
        global: bool,
        range: InvalidateRange,
        ports: &dyn Downstream,
    ) -> Step {
        if self.state.queue.ledger.is_full() {
            return Step::Park(Parked::Invalidation);
        }
        self.report_invalidation(Scope::Function { to, pasid, global, range });
        if mutant!(SkipDeviceTlbFlush) {
            return Step::Done;
        }
        let tag = self.state.queue.ledger.new_tag();
        match ports.invalidate(to, InvalidateRequest { tag, pasid, global, range }) {
            InvalidateAck::Done if !self.holds(|| Point::DevTlbAck { from: to, tag }) => {}
            InvalidateAck::Done | InvalidateAck::Pending => self.state.queue.ledger.expect(tag, to),
        }
        Step::Done
    }

    /// Invalidation wait (§6.5.2.8).
    ///
    /// Page request drain (PD, §7.10) asks that page requests which were under way before the wait are in the queue, or
    /// answered, when it completes. They are, for three reasons. A page request enters the unit as one call of
    /// `page_request(&mut self)`, which queues, answers or holds it before it returns, so none is half-way while this
    /// function holds `&mut self`. The wait waits for those that the gate holds. And a requester that was told to drop
    /// a translation sends no request for it once it has acknowledged the invalidation, for which this wait waited.
    fn wait(&mut self, low: Wait, high: u64, ports: &dyn Downstream) -> Result<Step, QueueError> {
        reserved(low.reserved0() || low.reserved1() != 0 || high & 3 != 0)?;
        if !self.state.queue.ledger.is_empty() && !mutant!(WaitBeforeAcknowledgements) {
            if mutant!(StatusBeforeInvalidations) && low.status_write() {
                let _ = self.memory.store_u32(GuestAddress(high), low.status_data());
            }
            return Ok(Step::Park(Parked::Wait));
        }
        if low.page_request_drain() && self.holds_page_requests() && !mutant!(DrainForgetsTheGate) {
            return Ok(Step::Park(Parked::Drain));
        }
        let status = low.status_write().then(|| (high, low.status_data()));
        if self.holds(|| Point::IqWait { status, interrupt: low.interrupt(), fence: low.fence() }) {
            // Software does not know yet, but all invalidations so far are complete.
            self.report(|observer| observer.completed());
            return Ok(Step::Done);
        }
        self.complete_wait(status, low.interrupt(), ports)?;
        self.report(|observer| observer.completed());
        Ok(Step::Done)
    }

    /// Tells software that a wait is over: writes its status, and raises the completion event if it asks for it.
    pub(in crate::unit) fn complete_wait(
        &mut self,
        status: Option<(u64, u32)>,
        interrupt: bool,
        ports: &dyn Downstream,
    ) -> Result<(), QueueError> {
        if let Some((address, data)) = status {
            self.memory.store_u32(GuestAddress(address), data).map_err(|_| QueueError::Fetch)?;
        }
        self.counters.waits += 1;
        // A second completion while IWC is set sends nothing: software has not looked at the first (§6.5.2.8).
        if interrupt && !self.state.queue.wait_completed {
            self.state.queue.wait_completed = true;
            self.raise_event(EventKind::Invalidation, self.state.last_requester, ports);
        }
        Ok(())
    }

    /// Page group response (§7.5.1).
    fn page_group_response(
        &mut self,
        low: svadev_spec::vtd::invalidation::PageGroupResponse,
        high: PageGroupResponseIndex,
        ports: &dyn Downstream,
    ) -> Result<Step, QueueError> {
        reserved(low.reserved0() != 0 || low.reserved1() != 0 || high.reserved0() != 0 || high.reserved1() != 0)?;
        let code = match low.response_code() {
            response_code::SUCCESS => ResponseCode::Success,
            response_code::INVALID => ResponseCode::InvalidRequest,
            // Other values are reserved, and a function takes them for a failure (PCIe 6.0 §10.4.2.1).
            _ => ResponseCode::Failure,
        };
        let response = PageGroupResponse {
            pasid: low.pasid_present().then(|| Pasid::from_low_bits(low.pasid().into())),
            prg_index: PrgIndex::from_low_bits(high.prg_index().into()),
            code,
        };
        let to = Bdf(low.requester_id());
        self.report(|observer| observer.page_answered(to, response));
        if mutant!(AnswerLost) {
            return Ok(Step::Done);
        }
        if mutant!(AnswerTwice) {
            self.respond(to, response, ports);
        }
        self.respond(to, response, ports);
        Ok(Step::Done)
    }
}

fn reserved(violated: bool) -> Result<(), QueueError> {
    if violated { Err(QueueError::Reserved) } else { Ok(()) }
}

/// The range that S and ADDR name (§6.5.2.5; PCIe 6.0 §10.3.2). If S is set, the lowest clear address bit gives the
/// size. If none is clear, or only bit 63, the range is everything.
fn device_tlb_range(size: bool, frame: u64) -> InvalidateRange {
    let ones = if size { frame.trailing_ones() } else { 0 };
    let size_log2 = 12 + ones + u32::from(size);
    if size_log2 >= 64 {
        return InvalidateRange::All;
    }
    let size_log2 = u8::try_from(size_log2).expect("under 64");
    InvalidateRange::Naturally { start: Iova((frame << 12) >> size_log2 << size_log2), size_log2 }
}
