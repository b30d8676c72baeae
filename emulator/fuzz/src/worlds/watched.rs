//! Memory and ports that write down what the unit does, in one order.
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use svadev_fabric::{
    Bdf, Delivery, Downstream, InvalidateAck, InvalidateRequest, InvalidateTag, Msi, PageGroupResponse,
};
use svadev_memory::{GuestAddress, GuestMemory, HostWindow, MemoryError, Ram};

/// Something that left the unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// 4 bytes were stored: a wait's status.
    Store { at: u64, value: u32 },
    /// Bytes were written: a page request.
    Write { at: u64, len: usize },
    /// 8 bytes were replaced: accessed and dirty bits.
    Exchange { at: u64, old: u64, new: u64 },
    /// A device-TLB invalidation, and whether its completion is owed.
    Invalidate { to: Bdf, tag: InvalidateTag, pending: bool },
    /// A page group response.
    Response { to: Bdf, response: PageGroupResponse },
    /// A message interrupt.
    Interrupt(Msi),
}

/// The list of events, shared by a world's memory and ports.
#[derive(Clone, Debug, Default)]
pub(crate) struct Events(Arc<Mutex<Vec<Event>>>);

impl Events {
    fn list(&self) -> MutexGuard<'_, Vec<Event>> {
        self.0.lock().expect("nothing panics while it holds the list")
    }

    fn push(&self, event: Event) {
        self.list().push(event);
    }

    /// What happened since the last call.
    pub(crate) fn take(&self) -> Vec<Event> {
        std::mem::take(&mut self.list())
    }
}

/// RAM that counts loads and writes down changes that come through the trait. The guest's own go to `ram`.
#[derive(Debug)]
pub(crate) struct Watched {
    pub(crate) ram: Ram,
    events: Events,
    loads: AtomicU64,
}

impl Watched {
    pub(crate) fn new(bytes: usize, events: Events) -> Self {
        Self { ram: Ram::new(bytes).expect("a little memory can be mapped"), events, loads: AtomicU64::new(0) }
    }

    /// Loads since the last call.
    pub(crate) fn take_loads(&self) -> u64 {
        self.loads.swap(0, Ordering::Relaxed)
    }

    fn count(&self) {
        self.loads.fetch_add(1, Ordering::Relaxed);
    }
}

impl GuestMemory for Watched {
    type Kept = ();
    type View<'a> = &'a Self;

    fn view<'a>(&'a self, (): &'a mut ()) -> &'a Self {
        self
    }
    fn read(&self, gpa: GuestAddress, buf: &mut [u8]) -> Result<(), MemoryError> {
        self.count();
        self.ram.read(gpa, buf)
    }
    fn write(&self, gpa: GuestAddress, buf: &[u8]) -> Result<(), MemoryError> {
        self.ram.write(gpa, buf)?;
        self.events.push(Event::Write { at: gpa.0, len: buf.len() });
        Ok(())
    }
    fn load_u64(&self, gpa: GuestAddress) -> Result<u64, MemoryError> {
        self.count();
        self.ram.load_u64(gpa)
    }
    fn store_u32(&self, gpa: GuestAddress, value: u32) -> Result<(), MemoryError> {
        self.ram.store_u32(gpa, value)?;
        self.events.push(Event::Store { at: gpa.0, value });
        Ok(())
    }
    fn store_u64(&self, gpa: GuestAddress, value: u64) -> Result<(), MemoryError> {
        self.ram.store_u64(gpa, value)?;
        self.events.push(Event::Write { at: gpa.0, len: 8 });
        Ok(())
    }
    fn compare_exchange_u64(&self, gpa: GuestAddress, current: u64, new: u64) -> Result<Result<u64, u64>, MemoryError> {
        self.count();
        let outcome = self.ram.compare_exchange_u64(gpa, current, new)?;
        if outcome.is_ok() {
            self.events.push(Event::Exchange { at: gpa.0, old: current, new });
        }
        Ok(outcome)
    }
    fn window(&self, gpa: GuestAddress) -> Result<HostWindow, MemoryError> {
        self.ram.window(gpa)
    }
}

/// Functions that answer invalidations at once or later, as told.
#[derive(Debug)]
pub(crate) struct Ports {
    events: Events,
    /// Bit n: the invalidation whose number is n modulo 64 is answered later.
    pub(crate) later: AtomicU64,
    count: AtomicUsize,
}

impl Ports {
    pub(crate) fn new(events: Events) -> Self {
        Self { events, later: AtomicU64::new(0), count: AtomicUsize::new(0) }
    }
}

impl Downstream for Ports {
    fn invalidate(&self, to: Bdf, request: InvalidateRequest) -> InvalidateAck {
        let n = self.count.fetch_add(1, Ordering::Relaxed);
        let pending = self.later.load(Ordering::Relaxed) >> (n % 64) & 1 != 0;
        self.events.push(Event::Invalidate { to, tag: request.tag, pending });
        if pending { InvalidateAck::Pending } else { InvalidateAck::Done }
    }
    fn page_group_response(&self, to: Bdf, response: PageGroupResponse) {
        self.events.push(Event::Response { to, response });
    }
    fn message_interrupt(&self, _via: Option<Bdf>, msi: Msi) -> Delivery {
        self.events.push(Event::Interrupt(msi));
        Delivery::Sent
    }
}
