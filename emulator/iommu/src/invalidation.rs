//! The invalidation queue (§6.5.2, §11.4.9) and the register-based commands (§6.5.1).
//!
//! Descriptors are carried out one after another, so a fence asks for nothing more. What takes time is only a function's
//! acknowledgement of a device-TLB invalidation: a wait descriptor that finds one missing *parks* the queue, with the head at the
//! wait, until [`Unit::invalidate_complete`] has brought the last one.
use std::collections::BTreeMap;

use svadev_fabric::{
    Bdf, Downstream, InvalidateAck, InvalidateRange, InvalidateRequest, InvalidateTag, Iova, PageGroupResponse, Pasid,
    PrgIndex, ResponseCode,
};
use svadev_memory::{GuestAddress, GuestMemory};
use svadev_mutation::mutant;
use svadev_spec::vtd::invalidation::{
    ContextCache, DescriptorHeader, DeviceTlb, DeviceTlbAddress, InvalidateAddress, Iotlb, PageGroupResponseIndex,
    PasidCache, PasidDeviceTlb, PasidDeviceTlbAddress, PasidIotlb, QueueError, Wait, context_granularity,
    descriptor_type, iotlb_granularity, pasid_cache_granularity, pasid_iotlb_granularity, response_code,
};
use svadev_spec::vtd::registers::{
    ContextCommand, FaultStatus, InvalidationQueueAddress, InvalidationQueueError, IotlbInvalidate,
    translation_table_mode,
};

use crate::cache::CacheTag;
use crate::config::MAX_ADDRESS_MASK;
use crate::observe::Scope;
use crate::unit::Unit;

/// Device-TLB invalidations that may be under way at once. One more parks the queue like a wait.
const MAX_OUTSTANDING: usize = 256;

/// Registers and state of the queue.
#[derive(Debug)]
pub(crate) struct InvalidationQueue {
    /// IQA.
    pub(crate) address: InvalidationQueueAddress,
    /// IQH, in bytes.
    pub(crate) head: u64,
    /// IQT, in bytes, as software wrote it.
    pub(crate) tail: u64,
    /// IQERCD.
    pub(crate) error: InvalidationQueueError,
    /// ICS.IWC.
    pub(crate) wait_completed: bool,
    /// Invalidations sent and not acknowledged.
    outstanding: BTreeMap<InvalidateTag, Bdf>,
    /// The next tag. Tags are never used twice, so a late acknowledgement is recognised.
    next_tag: u64,
    /// The head is at a descriptor that waits: it was counted.
    parked: Option<Parked>,
}

/// What became of a descriptor.
enum Step {
    Done,
    /// It must be tried again when an acknowledgement has come.
    Park(Parked),
}

/// What waits for acknowledgements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parked {
    /// A wait, for all of them.
    Wait,
    /// A device-TLB invalidation, until it may be sent.
    Invalidation,
}

impl InvalidationQueue {
    /// `next_tag` goes on from the queue before, across resets.
    pub(crate) fn new(next_tag: u64) -> Self {
        Self {
            address: InvalidationQueueAddress::new(),
            head: 0,
            tail: 0,
            error: InvalidationQueueError::new(),
            wait_completed: false,
            outstanding: BTreeMap::new(),
            next_tag,
            parked: None,
        }
    }

    pub(crate) fn next_tag(&self) -> u64 {
        self.next_tag
    }

    fn bytes(&self) -> u64 {
        4096 << self.address.queue_size()
    }

    fn descriptor_bytes(&self) -> u64 {
        if self.address.descriptor_width() { 32 } else { 16 }
    }

    fn advance(&mut self) {
        let next = self.head + self.descriptor_bytes();
        self.head = if mutant!(QueueHeadNotWrapped) { next } else { next & (self.bytes() - 1) };
    }

    /// GCMD.QIE changed: the head starts over (§11.4.9.1), and nobody waits for acknowledgements any more.
    pub(crate) fn restart(&mut self) {
        self.head = 0;
        self.outstanding.clear();
        self.parked = None;
    }

    /// The fields of IQERCD count only while their status bit is set (§11.4.9.9).
    pub(crate) fn forget_errors(&mut self, status: FaultStatus) {
        if !status.invalidation_queue_error() {
            self.error.set_queue_error_information(0);
        }
        if !status.invalidation_timeout_error() {
            self.error.set_timeout_source_id(0);
        }
        if !status.invalidation_completion_error() {
            self.error.set_completion_source_id(0);
        }
    }
}

impl<M: GuestMemory> Unit<M> {
    /// Carries descriptors out until the queue is empty, parked, or stopped by an error. Bounded: the tail stands still meanwhile.
    pub(crate) fn process_queue(&mut self, ports: &dyn Downstream) {
        while self.global.queued_invalidation_enable()
            && !self.faults.queue_stopped()
            && self.queue.head != self.queue.tail
        {
            match self.next_descriptor().and_then(|descriptor| self.carry_out(descriptor, ports)) {
                Ok(Step::Done) => {
                    self.queue.parked = None;
                    self.queue.advance();
                }
                Ok(Step::Park(parked)) => {
                    if self.queue.parked.replace(parked).is_none() {
                        self.counters.waits_parked += 1;
                    }
                    if mutant!(ParkSkipsWait) {
                        self.queue.advance();
                    }
                    return;
                }
                Err(error) => {
                    tracing::debug!(?error, head = self.queue.head, "invalidation queue error");
                    if mutant!(QueueErrorGoesOn) {
                        self.queue.advance();
                        continue;
                    }
                    self.counters.queue_errors += 1;
                    self.queue.error.set_queue_error_information(error as u8);
                    self.set_queue_status(
                        |status| status.set_invalidation_queue_error(true),
                        self.last_requester,
                        ports,
                    );
                    return;
                }
            }
        }
    }

    /// Reads the descriptor at the head. The third and fourth quadword of wide ones are reserved or software's.
    fn next_descriptor(&self) -> Result<[u64; 2], QueueError> {
        let queue = &self.queue;
        if queue.tail >= queue.bytes() {
            return Err(QueueError::InvalidTail);
        }
        if queue.tail & (queue.descriptor_bytes() - 1) != 0 {
            return Err(QueueError::UnalignedTail);
        }
        if self.scalable() && !queue.address.descriptor_width() {
            return Err(QueueError::InvalidWidth);
        }
        let at = (queue.address.frame() << 12).checked_add(queue.head).ok_or(QueueError::Fetch)?;
        let load = |at| self.memory.load_u64(GuestAddress(at)).map_err(|_| QueueError::Fetch);
        Ok([load(at)?, load(at + 8)?])
    }

    fn report_invalidation(&mut self, scope: Scope) {
        let by_register = !self.global.queued_invalidation_enable();
        self.report(|observer| {
            observer.invalidated(scope);
            if by_register {
                // A register-based command is complete when its start bit is clear again (§6.5.1).
                observer.completed();
            }
        });
    }

    fn scalable(&self) -> bool {
        self.root.translation_table_mode() == translation_table_mode::SCALABLE
    }

    fn carry_out(&mut self, [low, high]: [u64; 2], ports: &dyn Downstream) -> Result<Step, QueueError> {
        let header = DescriptorHeader::from(low);
        if header.type_high() != 0 {
            return Err(QueueError::InvalidType);
        }
        let wide = self.queue.address.descriptor_width();
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

    /// §6.5.2.1.
    fn context_cache(&mut self, low: ContextCache, high: u64) -> Result<Step, QueueError> {
        reserved(low.reserved0() != 0 || low.reserved1() != 0 || low.reserved2() != 0 || high != 0)?;
        reserved(!self.invalidate_contexts(low.granularity(), low.source_id(), low.function_mask()))?;
        Ok(Step::Done)
    }

    /// Returns false for a reserved granularity.
    fn invalidate_contexts(&mut self, granularity: u8, source_id: u16, function_mask: u8) -> bool {
        match granularity {
            // The domain's entries cannot be told from others without a scan, and scalable mode ignores the domain: all go.
            context_granularity::GLOBAL | context_granularity::DOMAIN => {
                self.entries.invalidate_contexts(&mut self.clock);
            }
            context_granularity::DEVICE => {
                if !mutant!(ContextCacheInvalidationDoesNothing) {
                    self.entries.invalidate_source(source_id, function_mask, &mut self.clock);
                }
            }
            _ => return false,
        }
        self.report_invalidation(match granularity {
            context_granularity::DEVICE => Scope::Source { source_id, function_mask },
            _ => Scope::Contexts,
        });
        true
    }

    /// §6.5.2.2.
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

    /// §6.5.2.3.
    fn iotlb_descriptor(&mut self, low: Iotlb, high: InvalidateAddress) -> Result<Step, QueueError> {
        reserved(low.reserved0() || low.reserved1() != 0 || low.reserved2() != 0 || high.reserved() != 0)?;
        reserved(!self.invalidate_iotlb(low.granularity(), low.domain_id(), high))?;
        Ok(Step::Done)
    }

    /// Returns false for a reserved granularity, or an address mask beyond CAP.MAMV.
    fn invalidate_iotlb(&mut self, granularity: u8, domain_id: u16, address: InvalidateAddress) -> bool {
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
            _ => return false,
        };
        self.report_invalidation(scope);
        true
    }

    /// §6.5.2.4.
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

    /// §6.5.2.5. The physical function's id only matters to virtual functions, which are not here.
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

    /// §6.5.2.6.
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
        if self.queue.outstanding.len() >= MAX_OUTSTANDING {
            return Step::Park(Parked::Invalidation);
        }
        self.report_invalidation(Scope::Function { to, pasid, global, range });
        if mutant!(SkipDeviceTlbFlush) {
            return Step::Done;
        }
        let tag = InvalidateTag::unit(self.queue.next_tag);
        self.queue.next_tag += 1;
        match ports.invalidate(to, InvalidateRequest { tag, pasid, global, range }) {
            InvalidateAck::Done => {}
            InvalidateAck::Pending => {
                self.queue.outstanding.insert(tag, to);
            }
        }
        Step::Done
    }

    /// §6.5.2.8.
    ///
    /// Page request drain (PD, §7.10) asks that page requests which were under way before the wait are in the queue, or
    /// answered, when it completes. They are: a page request enters the unit as one call of `page_request(&mut self)` that queues or
    /// answers it before it returns, so none is half-way while this function holds `&mut self`; and a requester sends no request for a
    /// translation it was told to drop before it acknowledged the invalidation, for which this wait waited.
    fn wait(&mut self, low: Wait, high: u64, ports: &dyn Downstream) -> Result<Step, QueueError> {
        reserved(low.reserved0() || low.reserved1() != 0 || high & 3 != 0)?;
        if !self.queue.outstanding.is_empty() && !mutant!(WaitBeforeAcknowledgements) {
            if mutant!(StatusBeforeInvalidations) && low.status_write() {
                let _ = self.memory.store_u32(GuestAddress(high), low.status_data());
            }
            return Ok(Step::Park(Parked::Wait));
        }
        if low.status_write() {
            self.memory.store_u32(GuestAddress(high), low.status_data()).map_err(|_| QueueError::Fetch)?;
        }
        self.counters.waits += 1;
        self.report(|observer| observer.completed());
        // A second completion while IWC is set sends nothing: software has not looked at the first (§6.5.2.8).
        if low.interrupt() && !self.queue.wait_completed {
            self.queue.wait_completed = true;
            let msi = self.invalidation_event.raise();
            self.send(self.last_requester, msi, ports);
        }
        Ok(Step::Done)
    }

    /// §7.5.1.
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
            ports.page_group_response(to, response);
        }
        ports.page_group_response(to, response);
        Ok(Step::Done)
    }

    /// A function acknowledged an invalidation for which it had said [`InvalidateAck::Pending`]. Goes on with a parked queue.
    pub fn invalidate_complete(&mut self, requester: Bdf, tag: InvalidateTag, ports: &dyn Downstream) {
        let expected = self.queue.outstanding.get(&tag);
        if expected == Some(&requester) || (expected.is_some() && mutant!(AcknowledgementFromAnyone)) {
            self.queue.outstanding.remove(&tag);
            if self.queue.parked.is_some() {
                self.process_queue(ports);
            }
            return;
        }
        if tag.number < self.queue.next_tag && !self.queue.outstanding.contains_key(&tag) {
            // Given up by a reset, a restart of the queue, or a time-out: late, but not unexpected.
            return;
        }
        self.queue.error.set_completion_source_id(requester.0);
        self.set_queue_status(|status| status.set_invalidation_completion_error(true), Some(requester), ports);
    }

    /// Acknowledgements of `requester` took too long: the caller, who has a clock, gives up on them, and with them on all others (§6.5.2.10). A
    /// wait that waits for them is dropped without its status; the queue stops until software clears FSTS.ITE. An invalidation that was not sent
    /// yet is sent then: software has no sign that it was not. Nothing happens when no acknowledgement is missing.
    pub fn invalidate_timed_out(&mut self, requester: Bdf, ports: &dyn Downstream) {
        if !self.queue.outstanding.values().any(|&to| to == requester) {
            return;
        }
        self.queue.outstanding.clear();
        self.report(|observer| observer.abandoned());
        match self.queue.parked.take() {
            Some(Parked::Wait) if !mutant!(TimeoutKeepsWait) => self.queue.advance(),
            Some(Parked::Invalidation) if mutant!(TimeoutSkipsInvalidation) => self.queue.advance(),
            _ => {}
        }
        self.queue.error.set_timeout_source_id(requester.0);
        self.set_queue_status(|status| status.set_invalidation_timeout_error(true), Some(requester), ports);
    }

    /// A function's device-TLB invalidations that are not acknowledged, as tag and function, oldest first.
    pub fn outstanding_invalidations(&self) -> impl Iterator<Item = (InvalidateTag, Bdf)> + '_ {
        self.queue.outstanding.iter().map(|(&tag, &to)| (tag, to))
    }

    /// A write to CCMD with ICC set (§11.4.6.1). Refused while the queue is enabled: CAIG stays 0.
    pub(crate) fn context_command(&mut self, command: ContextCommand) -> ContextCommand {
        let done = !self.global.queued_invalidation_enable()
            && self.invalidate_contexts(command.requested_granularity(), command.source_id(), command.function_mask());
        let actual = if done { command.requested_granularity() } else { 0 };
        command.with_invalidate(false).with_actual_granularity(actual)
    }

    /// A write to IOTLB with IVT set (§11.4.6.3). Refused while the queue is enabled: IAIG stays 0.
    pub(crate) fn iotlb_command(&mut self, command: IotlbInvalidate) -> IotlbInvalidate {
        let address = self.invalidate_address;
        let done = !self.global.queued_invalidation_enable()
            && self.invalidate_iotlb(command.requested_granularity(), command.domain_id(), address);
        let actual = if done { command.requested_granularity() } else { 0 };
        command.with_invalidate(false).with_actual_granularity(actual)
    }
}

fn reserved(violated: bool) -> Result<(), QueueError> {
    if violated { Err(QueueError::Reserved) } else { Ok(()) }
}

/// S and ADDR (§6.5.2.5; PCIe 6.0 §10.3.2): with S, the lowest clear address bit says how much, none or only bit 63 everything.
fn device_tlb_range(size: bool, frame: u64) -> InvalidateRange {
    let ones = if size { frame.trailing_ones() } else { 0 };
    let size_log2 = 12 + ones + u32::from(size);
    if size_log2 >= 64 {
        return InvalidateRange::All;
    }
    let size_log2 = u8::try_from(size_log2).expect("under 64");
    InvalidateRange::Naturally { start: Iova((frame << 12) >> size_log2 << size_log2), size_log2 }
}
