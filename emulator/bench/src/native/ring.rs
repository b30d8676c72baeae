//! The program's side of a queue.
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::ensure;
use svadev_spec::device::{Code, Descriptor, DescriptorFlags, DescriptorPasid, doorbell, opcode};
use zerocopy::IntoBytes as _;

use super::wait::{PATIENCE, Spin, full_fence};
use super::world::World;

/// A COPY by virtual addresses.
pub(crate) fn copy(from: u64, to: u64, length: u64) -> Descriptor {
    Descriptor { opcode: opcode::COPY, src: from, dst: to, length, ..Descriptor::default() }
}

/// The same for a kernel queue, in the address space of a PASID.
pub(crate) fn for_pasid(descriptor: Descriptor, pasid: u32) -> Descriptor {
    Descriptor { pasid: DescriptorPasid::new().with_pasid(pasid).with_valid(true), ..descriptor }
}

/// The same, with an interrupt when it is done.
pub(crate) fn with_interrupt(descriptor: Descriptor) -> Descriptor {
    Descriptor { flags: descriptor.flags | DescriptorFlags::INTERRUPT.bits(), ..descriptor }
}

/// An open queue.
#[derive(Debug)]
pub(crate) struct Ring<'w> {
    world: &'w World,
    number: u16,
    mask: u32,
    submissions: u64,
    completions: u64,
    /// Free-running counters: descriptors written, descriptors announced, completions read, completions announced.
    tail: u32,
    rung: u32,
    head: u32,
    freed: u32,
}

impl<'w> Ring<'w> {
    /// Opens a queue, as [`World::open`] does.
    pub(super) fn open(world: &'w World, number: u16, log2: u8, user: Option<u32>) -> anyhow::Result<Self> {
        let (submissions, completions) = world.open(number, log2, user)?;
        let mask = (1 << log2) - 1;
        Ok(Self { world, number, mask, submissions, completions, tail: 0, rung: 0, head: 0, freed: 0 })
    }

    /// Its number.
    pub(crate) fn number(&self) -> u16 {
        self.number
    }

    /// Descriptors that were written and whose completions were not read.
    pub(crate) fn pending(&self) -> u32 {
        self.tail.wrapping_sub(self.head)
    }

    /// Writes a descriptor. The ring must have room.
    pub(crate) fn put(&mut self, descriptor: &Descriptor) {
        assert!(self.pending() <= self.mask, "the submission ring is full");
        let at = self.submissions + 64 * u64::from(self.tail & self.mask);
        for (word, bytes) in (at..).step_by(8).zip(descriptor.as_bytes().chunks_exact(8)) {
            let value = u64::from_ne_bytes(bytes.try_into().expect("eight bytes"));
            self.world.memory.word(word).store(value, Ordering::Relaxed);
        }
        self.tail = self.tail.wrapping_add(1);
    }

    /// Announces the descriptors written since the last call, and wakes the engine if it sleeps. Returns whether that
    /// took a trapped write.
    pub(crate) fn ring(&mut self) -> anyhow::Result<bool> {
        if self.rung == self.tail && self.freed == self.head {
            return Ok(false);
        }
        if self.freed != self.head {
            self.world.doorbell(self.number, doorbell::CQ_HEAD).store(self.head, Ordering::Release);
            self.freed = self.head;
        }
        self.world.doorbell(self.number, doorbell::SQ_TAIL).store(self.tail, Ordering::Release);
        self.rung = self.tail;
        full_fence();
        let armed = self.world.doorbell(self.number, doorbell::ARMED).load(Ordering::Acquire) != 0;
        if armed {
            self.world.wake(self.number)?;
        }
        Ok(armed)
    }

    /// Reads the next completion, if it is there. Errors: the descriptor failed.
    pub(crate) fn poll(&mut self) -> anyhow::Result<bool> {
        let last = self.last_word(self.head);
        if last >> 32 != u64::from(self.head.wrapping_add(1)) {
            return Ok(false);
        }
        self.head = self.head.wrapping_add(1);
        if last & 0xffff != Code::Success as u64 {
            let code = u16::try_from(last & 0xffff).ok().and_then(Code::from_raw);
            anyhow::bail!("queue {}: a descriptor ended as {code:?}", self.number);
        }
        Ok(true)
    }

    /// Spins until the device has fetched every descriptor.
    pub(crate) fn wait_fetched(&self) -> anyhow::Result<()> {
        let (since, mut spin) = (Instant::now(), Spin::default());
        while self.world.doorbell(self.number, doorbell::SQ_HEAD).load(Ordering::Acquire) != self.tail {
            ensure!(since.elapsed() < PATIENCE, "queue {}: a descriptor was not fetched in time", self.number);
            spin.once();
        }
        Ok(())
    }

    /// Spins until the next completion is there, and reads it.
    pub(crate) fn next(&mut self) -> anyhow::Result<()> {
        self.next_burst(1)
    }

    /// Spins until the next `burst` completions are there, and reads them. Completions are written in order, so it
    /// polls only the last one. Polling the next one would take away the cache line that the device is writing, once
    /// for each completion.
    fn next_burst(&mut self, burst: u32) -> anyhow::Result<()> {
        let mut since = None;
        let mut spin = Spin::default();
        while !self.is_done(burst - 1) {
            if spin.once() {
                let since = since.get_or_insert_with(Instant::now);
                if since.elapsed() > PATIENCE {
                    self.world.check_queue(self.number)?;
                    ensure!(false, "queue {}: a descriptor was not completed in time", self.number);
                }
            }
        }
        for _ in 0..burst {
            ensure!(self.poll()?, "queue {}: a completion was written out of order", self.number);
        }
        Ok(())
    }

    /// Whether the completion after the next `ahead` ones is there.
    fn is_done(&self, ahead: u32) -> bool {
        let index = self.head.wrapping_add(ahead);
        self.last_word(index) >> 32 == u64::from(index.wrapping_add(1))
    }

    /// Status (low 16 bits) and sequence number (high 32) of a completion: one word, written last.
    fn last_word(&self, index: u32) -> u64 {
        let at = self.completions + 32 * u64::from(index & self.mask);
        u64::from_le(self.world.memory.word(at + 24).load(Ordering::Acquire))
    }

    /// Runs `count` descriptors with at most `depth` under way, in bursts of a quarter of `depth`. The device works on
    /// the other three quarters while the program reads completions and writes descriptors.
    pub(crate) fn stream(
        &mut self,
        count: u32,
        depth: u32,
        mut descriptor: impl FnMut(u32) -> Descriptor,
    ) -> anyhow::Result<()> {
        let (mut put, mut done) = (0, 0);
        while done < count {
            while put < count && put - done < depth {
                self.put(&descriptor(put));
                put += 1;
            }
            self.ring()?;
            let burst = (depth / 4).clamp(1, put - done);
            self.next_burst(burst)?;
            done += burst;
            while done < put && self.poll()? {
                done += 1;
            }
        }
        Ok(())
    }
}
