//! A function with warm engines in this process: flat memory, an IOMMU that maps every address to itself, and a
//! driver's side of the queues that allocates nothing once it is made.
#![allow(clippy::unwrap_used, reason = "a test's own set-up")]
use std::sync::Arc;

use svadev_accelerator::{DoorbellPages, Engine, Function, FunctionPorts, FunctionSettings, Progress};
use svadev_fabric::{
    Access, AtsError, Bdf, Gpa, InvalidateTag, PageRequest, PageRequestOutcome, Translation, TranslationRequest,
    Upstream,
};
use svadev_memory::{GuestAddress, GuestMemory, Ram};
use svadev_spec::device::{
    BAR_REGISTERS, Completion, Descriptor, QueuePasid, QueueSize, QueueVector, doorbell, opcode, regs,
};
use svadev_spec::pcie::{self, extended_capability, header};
use zerocopy::{FromBytes, IntoBytes};

/// Bytes of memory, at addresses from 0.
pub(crate) const RAM: u64 = 256 << 20;
/// Log2 of a ring's entries.
pub(crate) const RING_LOG2: u32 = 8;
/// Where a process's buffers may be: above all rings.
pub(crate) const BUFFERS: u64 = 32 << 20;
const RINGS: u64 = 0x10_0000;
const RING_BYTES: u64 = 0x1_0000;

/// Maps every address to itself, in pages of `1 << size_log2` bytes.
#[derive(Debug)]
pub(crate) struct Identity {
    size_log2: u8,
}

impl Upstream for Identity {
    fn translate(&self, request: TranslationRequest) -> Result<Translation, AtsError> {
        Ok(Translation {
            gpa: Gpa(request.iova.0 >> self.size_log2 << self.size_log2),
            size_log2: self.size_log2,
            access: Access::READ_WRITE,
            global: false,
            untranslated_only: false,
        })
    }
    fn page_request(&self, _: PageRequest) -> PageRequestOutcome {
        PageRequestOutcome::Dropped
    }
    fn invalidate_complete(&self, _: Bdf, _: InvalidateTag) {}
}

/// Hears nothing of what the function says.
#[derive(Debug)]
struct Ports;

impl FunctionPorts for Ports {
    fn interrupt_pending(&self, _vector: u16) -> bool {
        false
    }
    fn interrupt(&self, _: u16) {}
    fn wake(&self, _: usize) {}
    fn memory_released(&self, _: u64) {}
    fn reset_done(&self) {}
}

#[derive(Clone, Copy, Debug, Default)]
struct Ring {
    tail: u32,
    head: u32,
}

/// A function with warm engines, flat memory, and a driver's side of its queues.
pub(crate) struct Rig {
    pub(crate) memory: Arc<Ram>,
    pub(crate) function: Function,
    pub(crate) engines: Vec<Engine<svadev_endpoint::On<Ram, Identity>>>,
    rings: Vec<Ring>,
    now_ns: u64,
}

impl Rig {
    /// `queues` user queues of as many processes, enabled, on one engine, with pages of `1 << size_log2` bytes.
    pub(crate) fn new(queues: u16, size_log2: u8) -> Self {
        let settings = FunctionSettings { queues, ..FunctionSettings::new(Bdf(0x30)) };
        let memory = Arc::new(Ram::new(usize::try_from(RAM).unwrap()).unwrap());
        let upstream = Arc::new(Identity { size_log2 });
        let (mut function, engines) = Function::new(
            settings,
            Arc::clone(&memory),
            upstream,
            Arc::new(Ports),
            DoorbellPages::anonymous(queues.into()),
        );
        configure(&mut function);
        let rings = vec![Ring::default(); queues.into()];
        let mut rig = Self { memory, function, engines, rings, now_ns: 1 };
        (0..usize::from(queues)).for_each(|queue| rig.enable(queue));
        rig.settle();
        rig
    }

    fn enable(&mut self, queue: usize) {
        let register = |r| regs::QUEUES + queue as u64 * regs::QUEUE_STRIDE + r;
        let log2 = u8::try_from(RING_LOG2).unwrap();
        let size = QueueSize::new().with_sq_log2(log2).with_cq_log2(log2);
        let owner = QueuePasid::new().with_pasid(u32::try_from(queue).unwrap() + 1).with_user(true);
        for (r, value) in [
            (regs::QUEUE_SIZE, size.into_bits()),
            (regs::QUEUE_PASID, owner.into_bits()),
            (regs::QUEUE_VECTOR, QueueVector::new().with_enable(true).into_bits()),
        ] {
            self.function.bar_write(BAR_REGISTERS, register(r), &value.to_le_bytes());
        }
        for (r, value) in
            [(regs::QUEUE_SQ_BASE, sq_base(queue)), (regs::QUEUE_CQ_BASE, sq_base(queue) + RING_BYTES / 2)]
        {
            self.function.bar_write(BAR_REGISTERS, register(r), &value.to_le_bytes());
        }
        self.function.bar_write(BAR_REGISTERS, register(regs::QUEUE_CONTROL), &1u32.to_le_bytes());
    }

    /// Puts a descriptor into a ring; `ring` shows it to the device.
    pub(crate) fn push(&mut self, queue: usize, descriptor: &Descriptor) {
        let slot = u64::from(self.rings[queue].tail & ((1 << RING_LOG2) - 1));
        self.memory.write(GuestAddress(sq_base(queue) + slot * 64), descriptor.as_bytes()).unwrap();
        self.rings[queue].tail = self.rings[queue].tail.wrapping_add(1);
    }

    /// Stores the tail, and wakes whoever has stopped looking at it. One thread does all here, so no fence is needed.
    pub(crate) fn ring(&mut self, queue: usize) {
        let doorbells = self.function.shared().doorbells();
        doorbells.store(queue, doorbell::SQ_TAIL, self.rings[queue].tail);
        if doorbells.load(queue, doorbell::ARMED) != 0 {
            let number = u32::try_from(queue).unwrap();
            self.function.bar_write(BAR_REGISTERS, regs::WAKE, &number.to_le_bytes());
        }
    }

    /// Takes one completion, if there is one.
    pub(crate) fn reap(&mut self, queue: usize) -> Option<Completion> {
        let head = self.rings[queue].head;
        let at = sq_base(queue) + RING_BYTES / 2 + u64::from(head & ((1 << RING_LOG2) - 1)) * 32;
        let mut bytes = [0; size_of::<Completion>()];
        self.memory.read(GuestAddress(at), &mut bytes).unwrap();
        let completion = Completion::read_from_bytes(&bytes).unwrap();
        (completion.seq == head.wrapping_add(1)).then(|| {
            self.rings[queue].head = head.wrapping_add(1);
            completion
        })
    }

    /// Says in the doorbell what was taken.
    pub(crate) fn release(&self, queue: usize) {
        self.function.shared().doorbells().store(queue, doorbell::CQ_HEAD, self.rings[queue].head);
    }

    /// One pass of the engine.
    pub(crate) fn run(&mut self) -> Progress {
        self.now_ns += 1000;
        self.engines[0].run(self.now_ns)
    }

    /// Passes until nothing is left to do.
    pub(crate) fn settle(&mut self) {
        while self.run() == Progress::Worked {}
    }

    /// Submits `count` descriptors at once, runs them, and takes their completions.
    pub(crate) fn batch(&mut self, queue: usize, count: u32, descriptor: impl Fn(u32) -> Descriptor) {
        (0..count).for_each(|n| self.push(queue, &descriptor(n)));
        self.ring(queue);
        // An engine that watches many queues looks at a few of them a pass.
        let mut idle = 0;
        for _ in 0..count {
            let completion = loop {
                if let Some(completion) = self.reap(queue) {
                    break completion;
                }
                idle = if self.run() == Progress::Worked { 0 } else { idle + 1 };
                assert!(idle <= self.rings.len(), "the engine is at rest, so all have completed");
            };
            assert_eq!(completion.status, 0);
        }
        self.release(queue);
    }
}

/// A copy of `length` bytes.
pub(crate) fn copy(src: u64, dst: u64, length: u64) -> Descriptor {
    Descriptor { opcode: opcode::COPY, src, dst, length, ..Descriptor::default() }
}

fn sq_base(queue: usize) -> u64 {
    RINGS + queue as u64 * RING_BYTES
}

/// What a driver and the kernel's IOMMU layer write before anything works.
fn configure(function: &mut Function) {
    let mut capability = |id: u16| {
        let mut at = 0x100;
        loop {
            let mut dword = [0; 4];
            function.config_read(at, &mut dword);
            let dword = u32::from_le_bytes(dword);
            if dword & 0xffff == u32::from(id) {
                return at;
            }
            at = u64::from(dword >> 20);
            assert_ne!(at, 0, "no extended capability {id:#x}");
        }
    };
    let ats = capability(extended_capability::ATS) + u64::from(pcie::ats::CONTROL);
    let pasid = capability(extended_capability::PASID) + u64::from(pcie::pasid::CONTROL);
    let _ = function.config_write(header::COMMAND.into(), &6u16.to_le_bytes());
    let _ = function.config_write(pasid, &1u16.to_le_bytes());
    let _ = function.config_write(ats, &(1u16 << 15).to_le_bytes());
    function.bar_write(BAR_REGISTERS, regs::CONTROL, &1u32.to_le_bytes());
}
