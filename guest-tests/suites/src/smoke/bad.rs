//! Every kind of bad descriptor: an error completion with its own code, nothing touched, everyone else served.
use std::time::Duration;

use svadev_guest::{Buffer, Code, Completion, Descriptor, DescriptorFlags, ScatterEntry, opcode};
use svadev_spec::device::{MAX_LENGTH, MAX_SCATTER_ENTRIES};

use super::opcodes::check_success;
use super::scatter::write_list;
use crate::harness::{Context, Test, Verdict, Work};
use crate::memory::{check_bytes, small_pages};
use crate::{check, check_eq};

pub(super) const TESTS: &[Test] = &[
    Test::each("bad.opcode", opcodes),
    Test::each("bad.flags", flags),
    Test::each("bad.reserved", reserved),
    Test::each("bad.length", lengths),
    Test::each("bad.wrapping_address", wrapping),
    Test::each("bad.overlap", overlap),
    Test::each("bad.list", lists),
    Test::each("bad.random", random),
    Test::each("bad.others_are_served", others_served),
];

/// Memory and a device for descriptors that must change nothing.
struct Bench {
    device: svadev_guest::Device,
    list: Buffer,
    memory: Buffer,
    before: Vec<u8>,
}

impl Bench {
    fn new(c: &Context) -> Verdict<Self> {
        let (list, memory) = (small_pages(4096)?, small_pages(4 * 4096)?);
        let before = c.rng().bytes(memory.len());
        memory.write(0, &before);
        list.fill(0);
        Ok(Self { device: c.bound()?, list, memory, before })
    }

    /// Run a bad descriptor: it ends with `code`, and nothing was done.
    fn refuses(&self, descriptor: &Descriptor, code: Code, what: &str) -> Verdict {
        let done = self.device.go(&descriptor.with_cookie(0x0bad))?;
        check_eq!(done.code, code, "{what}: status of {done}");
        check_eq!((done.bytes_done, done.cookie), (0, 0x0bad), "{what}: bytes done and cookie");
        check_eq!(done.fault_address(), None, "{what}: address of a fault that is none");
        Ok(())
    }

    /// Nothing was touched, and good work is still done.
    fn finish(self, c: &Context) -> Verdict {
        check_bytes(&self.memory.bytes(0, self.memory.len()), &self.before, "memory that bad descriptors named")?;
        let good = self.device.go(&Descriptor::copy(self.memory.address(), self.memory.at(8192), 4096))?;
        check_success(&good, 4096, "good work on the same context")?;
        self.device.unbind()?;
        c.still_serves()
    }

    fn copy(&self) -> Descriptor {
        Descriptor::copy(self.memory.address(), self.memory.at(8192), 64)
    }

    fn fill(&self) -> Descriptor {
        Descriptor::fill(self.memory.address(), 64, 0)
    }

    fn compare(&self) -> Descriptor {
        Descriptor::compare(self.memory.address(), self.memory.at(8192), 64)
    }

    fn crc(&self) -> Descriptor {
        Descriptor::crc32c(self.memory.address(), 64)
    }
}

fn opcodes(c: &Context) -> Verdict {
    let b = Bench::new(c)?;
    for code in (0..=u8::MAX).filter(|&o| o >= 64 || opcode::IMPLEMENTED & 1 << o == 0) {
        b.refuses(&Descriptor::new(code), Code::BadOpcode, &format!("opcode {code:#x}"))?;
    }
    let mut strange = b.copy();
    strange.raw.opcode = 0xff;
    b.refuses(&strange, Code::BadOpcode, "opcode 0xff with a copy's fields")?;
    b.finish(c)
}

fn flags(c: &Context) -> Verdict {
    let b = Bench::new(c)?;
    for bit in 5..8 {
        let unknown = DescriptorFlags::from_bits_retain(1 << bit);
        for (name, d) in [("copy", b.copy()), ("nop", Descriptor::nop()), ("drain", Descriptor::drain())] {
            b.refuses(&d.with_flags(unknown), Code::BadFlags, &format!("{name} with unknown flag {bit}"))?;
        }
    }
    let list = b.list.address();
    write_list(&b.list, 0, &[ScatterEntry { address: b.memory.address(), length: 64 }]);
    b.refuses(&b.crc().with_dst_list(list, 1), Code::BadFlags, "CRC with a destination list")?;
    b.refuses(&b.fill().with_src_list(list, 1), Code::BadFlags, "fill with a source list")?;
    b.refuses(&Descriptor::nop().with_src_list(list, 1), Code::BadFlags, "NOP with a source list")?;
    b.refuses(&Descriptor::drain().with_dst_list(list, 1), Code::BadFlags, "DRAIN with a destination list")?;
    b.finish(c)
}

fn reserved(c: &Context) -> Verdict {
    let b = Bench::new(c)?;
    for (name, good) in [("copy", b.copy()), ("fill", b.fill()), ("compare", b.compare()), ("crc", b.crc())] {
        let (mut first, mut second) = (good, good);
        first.raw.spaces = svadev_spec::device::OperandSpaces::from_bits(3);
        second.raw.reserved1 = 1 << 63;
        b.refuses(&first, Code::BadReserved, &format!("{name} with spaces that are none"))?;
        b.refuses(&second, Code::BadReserved, &format!("{name} with reserved1"))?;
        let (mut sources, mut destinations) = (good, good);
        sources.raw.src_entries = 1;
        destinations.raw.dst_entries = 1;
        b.refuses(&sources, Code::BadReserved, &format!("{name} with src_entries and no list"))?;
        b.refuses(&destinations, Code::BadReserved, &format!("{name} with dst_entries and no list"))?;
    }
    let address = b.memory.address();
    b.refuses(&b.copy().with_operand(1), Code::BadReserved, "copy with an operand")?;
    b.refuses(&b.compare().with_operand(1), Code::BadReserved, "compare with an operand")?;
    b.refuses(&b.fill().with_src(address), Code::BadReserved, "fill with a source")?;
    b.refuses(&b.crc().with_dst(address), Code::BadReserved, "CRC with a destination")?;
    b.refuses(&Descriptor::nop().with_src(address), Code::BadReserved, "NOP with a source")?;
    b.refuses(&Descriptor::drain().with_dst(address), Code::BadReserved, "DRAIN with a destination")?;
    b.refuses(&Descriptor::nop().with_operand(1), Code::BadReserved, "NOP with an operand")?;
    b.finish(c)
}

fn lengths(c: &Context) -> Verdict {
    let b = Bench::new(c)?;
    for (name, good) in [("copy", b.copy()), ("fill", b.fill()), ("compare", b.compare()), ("crc", b.crc())] {
        for length in [0, MAX_LENGTH + 1, 1 << 40, u64::MAX] {
            b.refuses(&good.with_length(length), Code::BadLength, &format!("{name} of {length:#x} bytes"))?;
        }
    }
    b.refuses(&Descriptor::nop().with_length(1), Code::BadLength, "NOP with a length")?;
    b.refuses(&Descriptor::drain().with_length(64), Code::BadLength, "DRAIN with a length")?;
    b.finish(c)
}

fn wrapping(c: &Context) -> Verdict {
    let b = Bench::new(c)?;
    let good = b.memory.address();
    for start in [u64::MAX, u64::MAX - 62, 0xffff_ffff_ffff_f000] {
        let length = 4097;
        let what = format!("{length} bytes at {start:#x}");
        b.refuses(&Descriptor::copy(start, good, length), Code::BadAddress, &format!("copy from {what}"))?;
        b.refuses(&Descriptor::copy(good, start, length), Code::BadAddress, &format!("copy to {what}"))?;
        b.refuses(&Descriptor::fill(start, length, 0), Code::BadAddress, &format!("fill of {what}"))?;
        b.refuses(&Descriptor::compare(good, start, length), Code::BadAddress, &format!("compare with {what}"))?;
        b.refuses(&Descriptor::crc32c(start, length), Code::BadAddress, &format!("CRC of {what}"))?;
        write_list(&b.list, 0, &[ScatterEntry { address: start, length }]);
        let listed = Descriptor::copy(0, good, length).with_src_list(b.list.address(), 1);
        b.refuses(&listed, Code::BadAddress, &format!("list entry of {what}"))?;
    }
    let list = Descriptor::copy(0, good, 64).with_src_list(u64::MAX - 15, 2);
    b.refuses(&list, Code::BadAddress, "a list that wraps")?;
    b.finish(c)
}

fn overlap(c: &Context) -> Verdict {
    let b = Bench::new(c)?;
    let at = |offset| b.memory.at(offset);
    for (from, to, length) in [(0, 0, 1), (0, 0, 4096), (0, 4095, 4096), (4095, 0, 4096), (0, 1, 2), (100, 50, 51)] {
        let copy = Descriptor::copy(at(from), at(to), length);
        b.refuses(&copy, Code::Overlap, &format!("{length} bytes from +{from} to +{to}"))?;
    }
    c.step("comparing memory with itself is no overlap");
    check_success(&b.device.go(&Descriptor::compare(at(0), at(0), 4096))?, 4096, "compare with itself")?;
    b.finish(c)
}

fn lists(c: &Context) -> Verdict {
    let b = Bench::new(c)?;
    let (list, a, z) = (b.list.address(), b.memory.address(), b.memory.at(8192));
    let entry = |length| ScatterEntry { address: a, length };
    let source = |total, count| Descriptor::copy(0, z, total).with_src_list(list, count);
    b.refuses(&source(64, 0), Code::BadList, "source list without entries")?;
    b.refuses(&source(64, MAX_SCATTER_ENTRIES + 1), Code::BadList, "source list too long")?;
    b.refuses(&source(64, u32::MAX), Code::BadList, "source list of 2^32 - 1 entries")?;
    b.refuses(&Descriptor::copy(a, 0, 64).with_dst_list(list, 0), Code::BadList, "destination list without entries")?;
    let cases: [(&str, &[ScatterEntry], u64); 5] = [
        ("an entry of no length", &[entry(64), entry(0)], 64),
        ("lengths below the descriptor's", &[entry(30), entry(33)], 64),
        ("lengths above the descriptor's", &[entry(30), entry(35)], 64),
        ("lengths whose sum wraps", &[entry(u64::MAX), entry(65)], 64),
        ("an entry longer than any operand", &[entry(MAX_LENGTH + 1)], 64),
    ];
    for (what, entries, total) in cases {
        write_list(&b.list, 0, entries);
        let count = u32::try_from(entries.len())?;
        let done = b.device.go(&source(total, count))?;
        // An entry that wraps the address space as well may be called either.
        let wraps = entries.iter().any(|e| e.address.checked_add(e.length).is_none());
        check!(
            done.code == Code::BadList || wraps && done.code == Code::BadAddress,
            "source list with {what}: expected BadList, actual {done}"
        );
        check_eq!(done.bytes_done, 0, "bytes done with {what}");
    }
    b.finish(c)
}

/// Random bytes as descriptors, with addresses that cannot hit anything: each gets one completion, and the device lives.
fn random(c: &Context) -> Verdict {
    let b = Bench::new(c)?;
    let mut rng = c.rng();
    let forbidden = small_pages(16 * 4096)?.unmap();
    for round in 0..20 {
        let batch: Vec<Descriptor> = (0..16).map(|i| wild_descriptor(&mut rng, forbidden, round * 16 + i)).collect();
        c.step(format!("round {round}: {:x?}", batch[0].raw));
        b.device.post_all(&batch)?;
        let done: Vec<Completion> = b.device.collect(16, c.limit(Duration::from_secs(10)))?;
        let mut cookies: Vec<u64> = done.iter().map(|d| d.cookie).collect();
        cookies.sort_unstable();
        let expected: Vec<u64> = (round * 16..round * 16 + 16).collect();
        check_eq!(cookies, expected, "cookies of round {round}: one completion for each");
        for completion in done {
            let sent = batch[usize::try_from(completion.cookie - round * 16)?].raw;
            let idle = sent.opcode == opcode::NOP || sent.opcode == opcode::DRAIN;
            check!(completion.code != Code::Success || idle, "{sent:x?} succeeded: {completion}");
        }
    }
    b.finish(c)
}

/// Random fields; addresses are zero, unmapped, or wrap, so that no memory can be hit.
fn wild_descriptor(rng: &mut crate::harness::Rng, unmapped: u64, cookie: u64) -> Descriptor {
    let mut address = || match rng.below(3) {
        0 => 0,
        1 => unmapped + rng.next_u64() % 4096,
        _ => u64::MAX - rng.next_u64() % 4096,
    };
    let (src, dst) = (address(), address());
    let mut d = Descriptor::new(u8::try_from(rng.below(8)).expect("below 8")).with_cookie(cookie);
    d = d.with_src(src).with_dst(dst);
    let bit = |rng: &mut crate::harness::Rng, one_in: usize| rng.below(one_in) == 0;
    d.raw.length = if bit(rng, 2) { rng.next_u64() % 8192 } else { rng.next_u64() };
    d.raw.flags = u8::try_from(rng.below(256)).expect("below 256");
    d.raw.spaces = svadev_spec::device::OperandSpaces::from_bits(u16::from(bit(rng, 8)) << 6);
    d.raw.reserved1 = u64::from(bit(rng, 8));
    d.raw.operand = if bit(rng, 2) { 0 } else { rng.next_u64() };
    d.raw.src_entries = if bit(rng, 2) { 0 } else { u32::try_from(rng.below(2000)).expect("below 2000") };
    d.raw.dst_entries = if bit(rng, 2) { 0 } else { u32::try_from(rng.below(2000)).expect("below 2000") };
    d
}

/// Good and bad work mixed in one submission: each ends as it should.
fn others_served(c: &Context) -> Verdict {
    let device = c.bound()?;
    let (src, dst) = (small_pages(16 * 4096)?, small_pages(16 * 4096)?);
    let data = c.rng().bytes(16 * 4096);
    src.write(0, &data);
    let wild = small_pages(4096)?.unmap();
    let mut batch = Vec::new();
    for i in 0..16 {
        let cookie = i as u64;
        batch.push(Descriptor::copy(src.at(i * 4096), dst.at(i * 4096), 4096).with_cookie(cookie));
        let bad = match i % 4 {
            0 => Descriptor::new(0xee),
            1 => Descriptor::copy(src.at(i * 4096), wild, 64),
            2 => Descriptor::fill(u64::MAX, 2, 0),
            _ => Descriptor::copy(0, dst.at(i * 4096), 64).with_src_list(wild, 1),
        };
        batch.push(bad.with_cookie(100 + cookie));
    }
    device.post_all(&batch)?;
    for done in device.collect(32, c.limit(Duration::from_secs(10)))? {
        check_eq!(done.is_success(), done.cookie < 100, "whether it succeeded: {done}");
    }
    check_bytes(&dst.bytes(0, 16 * 4096), &data, "what the good descriptors copied")
}
