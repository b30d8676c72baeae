//! Model 3: a region leaves the memory map while an engine has host pointers into it.
//!
//! The map, the region's file, the requester and its device TLB are the product's. What the map's readers get is made worse
//! than it is: a reader may see the map as it was before, unless something orders it after the change.
use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use loom::thread;
use svadev_fabric::{
    Access, AtsError, Bdf, Gpa, InvalidateAck, InvalidateTag, PageRequest, PageRequestOutcome, SourceId, Translation,
    TranslationRequest, Upstream,
};
use svadev_memory::{
    GuestAddress, GuestMemory, HostWindow, Mappings, MemoryError, MemoryMap, MemoryView, PAGE_SIZE, Region, Retired,
};

use super::*;
use crate::address::Target;
use crate::device::{On, Ports};
use crate::endpoint::{Endpoint, EndpointSettings};
use crate::engine_side::{EngineSide, Presence, invalidate};
use crate::gate::Gate;
use crate::mailbox::{Invalidation, Mailbox};
use crate::obligation::Answer;
use crate::requester::Requester;
use crate::span::Slice;

/// Where the region is, for the guest.
const GPA: GuestAddress = GuestAddress(0x10_0000);
const TOKEN: u64 = 7;

/// The map as a reader may see it.
#[derive(Debug)]
struct StaleMemory {
    map: MemoryMap,
    /// Before the change, and after it.
    views: [OnceLock<Arc<MemoryView>>; 2],
    /// Which of them is the newest. Relaxed, though the map's own word is more than that.
    newest: loom::sync::atomic::AtomicUsize,
}

impl StaleMemory {
    /// One page, mapped at [`GPA`].
    fn new(file: &OwnedFd) -> Self {
        let map = MemoryMap::new(Mappings::new());
        let fd = Some(file.try_clone().unwrap());
        let size = PAGE_SIZE as u64;
        map.map(Region { gpa: GPA, size, offset: 0, read: true, write: true, fd }).unwrap();
        let before = OnceLock::from(map.now());
        Self { map, views: [before, OnceLock::new()], newest: loom::sync::atomic::AtomicUsize::new(0) }
    }

    fn unmap(&self) -> Retired {
        let retired = self.map.unmap(GPA, PAGE_SIZE as u64).unwrap();
        self.views[1].set(self.map.now()).unwrap();
        self.newest.store(1, Ordering::Relaxed);
        retired
    }

    fn seen(&self) -> &MemoryView {
        self.views[self.newest.load(Ordering::Relaxed)].get().expect("published before it is the newest")
    }
}

impl GuestMemory for StaleMemory {
    type Kept = ();
    type View<'a> = &'a MemoryView;

    fn view<'a>(&'a self, (): &'a mut ()) -> &'a MemoryView {
        self.seen()
    }
    fn read(&self, gpa: GuestAddress, buf: &mut [u8]) -> Result<(), MemoryError> {
        self.seen().read(gpa, buf)
    }
    fn write(&self, gpa: GuestAddress, buf: &[u8]) -> Result<(), MemoryError> {
        self.seen().write(gpa, buf)
    }
    fn load_u64(&self, gpa: GuestAddress) -> Result<u64, MemoryError> {
        self.seen().load_u64(gpa)
    }
    fn store_u32(&self, gpa: GuestAddress, value: u32) -> Result<(), MemoryError> {
        self.seen().store_u32(gpa, value)
    }
    fn store_u64(&self, gpa: GuestAddress, value: u64) -> Result<(), MemoryError> {
        self.seen().store_u64(gpa, value)
    }
    fn compare_exchange_u64(&self, gpa: GuestAddress, current: u64, new: u64) -> Result<Result<u64, u64>, MemoryError> {
        self.seen().compare_exchange_u64(gpa, current, new)
    }
    fn window(&self, gpa: GuestAddress) -> Result<HostWindow, MemoryError> {
        self.seen().window(gpa)
    }
}

/// An IOMMU that translates one address to one, whatever happens: the region is removed under a live translation.
struct Identity;

impl Upstream for Identity {
    fn translate(&self, request: TranslationRequest) -> Result<Translation, AtsError> {
        Ok(Translation {
            gpa: Gpa(request.iova.0 & !(PAGE_SIZE as u64 - 1)),
            size_log2: 12,
            access: Access::READ_WRITE,
            global: false,
            untranslated_only: false,
        })
    }
    fn page_request(&self, _: PageRequest) -> PageRequestOutcome {
        unreachable!("everything is present")
    }
    fn invalidate_complete(&self, _: Bdf, _: InvalidateTag) {
        unreachable!("no invalidation comes from here")
    }
}

/// Ports of a function of which only settings and counters are used.
struct Nowhere;

impl Ports for Nowhere {
    fn wake(&self, _: usize) {}
    fn memory_released(&self, _: u64) {}
}

/// What the remover may get wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Remover {
    Right,
    /// Asks the engines first, and takes the region out of the map then.
    AskThenUnmap,
    /// Unmaps without waiting for the engine's word.
    DoNotWait,
    /// Keeps the memory, and so is ready for the engine's word, only after it has asked.
    AskThenHold,
}

struct World<P: Primitives> {
    sides: [EngineSide<(), P>; 1],
    memory: Arc<StaleMemory>,
    /// The region's host memory.
    host: Memory,
    /// As `Releases` of the backend: kept until the engine's word.
    held: Mutex<Option<Retired>>,
    released: Event,
}

impl<P: Primitives> World<P> {
    /// `Ports::memory_released`: the host memory goes.
    fn release(&self) {
        if let Some(retired) = self.held.lock().unwrap().take() {
            assert_eq!(retired.bytes(), PAGE_SIZE as u64);
            self.host.free();
            drop(retired);
            self.released.signal();
        }
    }

    /// A `DMA_UNMAP`, as `Accelerator` carries it out; returns when the VMM would be answered.
    fn remove(&self, way: Remover) {
        let ask = || {
            if invalidate(&self.sides, Invalidation::ALL, Answer::Memory(TOKEN)) == InvalidateAck::Done {
                self.release();
            }
        };
        let hold = |retired| *self.held.lock().unwrap() = Some(retired);
        match way {
            Remover::Right => {
                hold(self.memory.unmap());
                ask();
            }
            Remover::AskThenUnmap => {
                let ack = invalidate(&self.sides, Invalidation::ALL, Answer::Memory(TOKEN));
                hold(self.memory.unmap());
                if ack == InvalidateAck::Done {
                    self.release();
                }
            }
            Remover::DoNotWait => {
                hold(self.memory.unmap());
                ask();
                self.release();
            }
            Remover::AskThenHold => {
                let retired = self.memory.unmap();
                ask();
                hold(retired);
            }
        }
        self.released.wait();
    }
}

struct Engine<P: Primitives> {
    world: Arc<World<P>>,
    presence: Presence,
    taken: Mailbox<(), P>,
    requester: Requester<On<StaleMemory, Identity>>,
}

impl<P: Primitives> Engine<P> {
    fn new(world: &Arc<World<P>>, shared: &Endpoint<()>) -> Self {
        let requester = Requester::new(0, shared, Arc::clone(&world.memory), Arc::new(Identity), 1);
        Self { world: Arc::clone(world), presence: Presence::default(), taken: Mailbox::new(()), requester }
    }

    fn empty(&mut self) {
        let Self { world, taken, requester, .. } = self;
        world.sides[0].take_into(taken);
        for obligation in taken.carry_out(|invalidation| requester.invalidate(invalidation)) {
            if obligation.acknowledge() == Some(Answer::Memory(TOKEN)) {
                world.release();
            }
        }
    }

    /// One access through whatever the requester says is there.
    fn slice(&mut self) {
        let side = &self.world.sides[0];
        if if self.presence.is_online() { self.presence.look(side) } else { self.presence.arrive(side) } {
            self.empty();
        }
        // SAFETY: the mailbox was emptied above where something was posted.
        let slice = unsafe { Slice::begin(Gate { bus_master: true, ats: true, pasid: true }) };
        let target = Target { space: self.requester.space(None), iova: GPA.0, write: false };
        if let Ok(span) = self.requester.access(&slice, target) {
            self.world.host.access();
            let mut byte = [0];
            span.load(&mut byte);
            assert_eq!(byte, [0xa5]);
        }
    }

    /// Goes offline, and lets some other wake-up have come: nobody wakes it for this.
    fn rest(&mut self) {
        let _whether_it_sleeps = self.presence.rest(&self.world.sides[0], || (), || false);
    }

    fn leave(mut self) {
        let mut presence = std::mem::take(&mut self.presence);
        let world = Arc::clone(&self.world);
        presence.leave(&world.sides[0], || self.empty());
    }
}

/// A file of one page, full of 0xa5.
fn file() -> OwnedFd {
    let file = tempfile::tempfile().unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0xa5; PAGE_SIZE], 0).unwrap();
    file.into()
}

/// A region is removed while an engine works, rests, works and leaves. Every interleaving.
fn removal<const LACKS: u8>(way: Remover) -> usize {
    let file = file();
    // Settings and counters only. Outside, since it is too large for the stacks that loom makes.
    let settings = EndpointSettings {
        bdf: Bdf(8),
        source: SourceId::UNIT,
        engines: 1,
        tlb_entries: 1,
        group_pages: 32,
        page_request_timeout_ns: 10_000_000_000,
        audit: false,
    };
    let shared = Arc::new(Endpoint::new(settings, Box::new(Nowhere), || ()));
    check(None, move || {
        let world = Arc::new(World {
            sides: [EngineSide::<(), Loom<LACKS>>::new(())],
            memory: Arc::new(StaleMemory::new(&file)),
            host: Memory::new(),
            held: Mutex::new(None),
            released: Event::new(),
        });
        let mut engine = Engine::new(&world, &shared);
        let thread = thread::spawn(move || {
            engine.slice();
            engine.slice();
            engine.rest();
            engine.slice();
            engine.leave();
        });
        world.remove(way);
        thread.join().unwrap();
    })
}

#[test]
fn no_access_to_a_mapping_after_it_was_removed() {
    let executions = removal::<WHOLE>(Remover::Right);
    println!("{executions} executions");
    assert!(executions > 1000, "{executions}");
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_remover_that_asks_before_it_takes_the_region_out() {
    removal::<WHOLE>(Remover::AskThenUnmap);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_remover_that_does_not_wait() {
    removal::<WHOLE>(Remover::DoNotWait);
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_remover_that_is_not_ready_for_the_answer() {
    removal::<WHOLE>(Remover::AskThenHold);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_remover_without_its_fence() {
    removal::<NO_POST_FENCE>(Remover::Right);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn an_engine_that_arrives_without_its_fence() {
    removal::<NO_ONLINE_FENCE>(Remover::Right);
}

#[test]
#[should_panic(expected = "deadlock")]
fn an_engine_that_leaves_without_its_fence() {
    removal::<NO_OFFLINE_FENCE>(Remover::Right);
}
