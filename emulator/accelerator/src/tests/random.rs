//! Random descriptors against a model that is an array of bytes.
use proptest::prelude::*;
use svadev_spec::device::{Code, Descriptor, DescriptorFlags, FaultFlags, ScatterEntry, opcode};
use zerocopy::IntoBytes;

use super::world::*;

/// The process's memory: pages in a row, some of which are never there, with lists behind them.
const BASE: u64 = 0x7000_0000;
const PAGES: u64 = 24;
const BYTES: u64 = PAGES * 0x1000;
const GPA: u64 = 0x100_0000;
const LISTS: u64 = 0x7100_0000;
const LISTS_GPA: u64 = 0x200_0000;
const P: u32 = 2;

#[derive(Clone, Debug)]
struct Op {
    opcode: u8,
    src: u64,
    dst: u64,
    length: u64,
    operand: u64,
    /// Cut the source or the destination into a list after so many bytes.
    cut: (Option<u64>, Option<u64>),
    stop: bool,
    /// Pages that the kernel takes away after this one.
    evict: u32,
}

fn op() -> impl Strategy<Value = Op> {
    let length = prop_oneof![1u64..100, 1u64..20_000, 1u64..90_000];
    let cut = || prop::option::weighted(0.3, 1u64..6000);
    (2u8..6, 0..BYTES, 0..BYTES, length, any::<u64>(), (cut(), cut()), any::<bool>(), any::<u32>()).prop_map(
        |(opcode, src, dst, length, operand, cut, stop, evict)| Op {
            opcode,
            src,
            dst,
            length,
            operand,
            cut,
            stop,
            evict,
        },
    )
}

/// What the device must answer: status, bytes done, result, fault.
type Answer = (Code, u64, u64, u8);

struct Model {
    bytes: Vec<u8>,
    /// Pages that exist; the others never will.
    exists: Vec<bool>,
    present: Vec<bool>,
}

impl Model {
    /// The first byte from `at` on, within `length`, that cannot be had; with `stop`, what is not present counts too.
    fn first_bad(&self, at: u64, length: u64, stop: bool) -> Option<u64> {
        (at..at + length).find(|&b| {
            let page = usize::try_from(b / 0x1000).unwrap();
            page >= self.exists.len() || !self.exists[page] || (stop && !self.present[page])
        })
    }

    fn run(&mut self, op: &Op) -> Answer {
        let (reads, writes) = match op.opcode {
            opcode::COPY => (vec![op.src], Some(op.dst)),
            opcode::FILL => (vec![], Some(op.dst)),
            opcode::COMPARE => (vec![op.src, op.dst], None),
            _ => (vec![op.src], None),
        };
        if op.opcode == opcode::COPY && op.src.abs_diff(op.dst) < op.length {
            return (Code::Overlap, 0, 0, 0);
        }
        let mut bad: Option<(u64, u64, bool)> = None;
        for (at, write) in reads.iter().map(|&r| (r, false)).chain(writes.map(|d| (d, true))) {
            if let Some(b) = self.first_bad(at, op.length, op.stop)
                && bad.is_none_or(|(done, ..)| b - at < done)
            {
                bad = Some((b - at, b, write));
            }
        }
        let can = bad.map_or(op.length, |(done, ..)| done);
        let at = |a: u64| usize::try_from(a).unwrap();
        let (n, mut result) = (at(can), 0);
        match op.opcode {
            opcode::COPY => self.bytes.copy_within(at(op.src)..at(op.src) + n, at(op.dst)),
            opcode::FILL => {
                let pattern = op.operand.to_le_bytes();
                for (i, b) in self.bytes[at(op.dst)..at(op.dst) + n].iter_mut().enumerate() {
                    *b = pattern[i % 8];
                }
            }
            opcode::COMPARE => {
                if let Some(i) = (0..n).find(|i| self.bytes[at(op.src) + i] != self.bytes[at(op.dst) + i]) {
                    return (Code::Mismatch, i as u64, i as u64, 0);
                }
            }
            _ => {
                let seed = u32::try_from(op.operand & 0xffff_ffff).unwrap();
                result = crc32c::crc32c_append(seed, &self.bytes[at(op.src)..at(op.src) + n]).into();
            }
        }
        match bad {
            None => (Code::Success, op.length, result, 0),
            Some((done, b, write)) => {
                let fault = FaultFlags::ADDRESS_VALID.bits() | if write { FaultFlags::WRITE.bits() } else { 0 };
                (Code::PageFault, done, BASE + b, fault)
            }
        }
    }
}

/// Writes an operand as a list of two, where it is to be one; address and entries.
fn operand(w: &World, at: u64, length: u64, cut: Option<u64>, list: u64) -> (u64, u32) {
    let Some(first) = cut.filter(|&c| c < length) else { return (BASE + at, 0) };
    let entries = [
        ScatterEntry { address: BASE + at, length: first },
        ScatterEntry { address: BASE + at + first, length: length - first },
    ];
    w.write(LISTS_GPA + list, entries.as_bytes());
    (LISTS + list, 2)
}

fn descriptor(w: &World, op: &Op) -> Descriptor {
    let mut d = Descriptor { opcode: op.opcode, length: op.length, cookie: op.evict.into(), ..Default::default() };
    let mut flags = DescriptorFlags::empty();
    flags.set(DescriptorFlags::STOP_ON_FAULT, op.stop);
    if op.opcode != opcode::FILL {
        (d.src, d.src_entries) = operand(w, op.src, op.length, op.cut.0, 0xff0);
        flags.set(DescriptorFlags::SRC_LIST, d.src_entries != 0);
    }
    if op.opcode != opcode::CRC32C {
        (d.dst, d.dst_entries) = operand(w, op.dst, op.length, op.cut.1, 0x2000);
        flags.set(DescriptorFlags::DST_LIST, d.dst_entries != 0);
    }
    d.operand = match op.opcode {
        opcode::FILL => op.operand,
        opcode::CRC32C => op.operand & 0xffff_ffff,
        _ => 0,
    };
    d.flags = flags.bits();
    for_process(pasid(P), d)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn the_device_does_what_the_model_does(
        ops in prop::collection::vec(op(), 1..20),
        holes in any::<u32>(),
        group_pages in 1u16..9,
        tlb_entries in prop_oneof![Just(4usize), Just(4096)],
    ) {
        let mut w = World::with(|s| (s.group_pages, s.tlb_entries) = (group_pages, tlb_entries));
        w.enable(0, 5, None);
        w.mmu.set_kernel(Kernel::Serve);
        let space = Some(pasid(P));
        w.map(space, LISTS, LISTS_GPA, 0x4000);
        let exists: Vec<_> = (0..PAGES).map(|n| n % 24 < 20 || holes >> n & 1 == 0).collect();
        // Beyond the last page there is nothing, so that long operands run out of it.
        for n in (0..PAGES).filter(|&n| exists[usize::try_from(n).unwrap()]) {
            w.mmu.map_lazily(space, BASE + n * 0x1000, Page::rw(GPA + n * 0x1000));
        }
        let bytes = noise(holes.into(), usize::try_from(BYTES).unwrap());
        w.write(GPA, &bytes);
        let mut model = Model { bytes, present: vec![false; exists.len()], exists };
        for op in &ops {
            let d = descriptor(&w, op);
            let want = model.run(op);
            let c = w.run_one(0, d);
            // A CRC that ended early has no result, and neither has a compare.
            prop_assert_eq!((code(&c), c.bytes_done, c.result, c.fault), want, "{:x?}", op);
            prop_assert!(w.read(GPA, usize::try_from(BYTES).unwrap()) == model.bytes, "memory differs after {:x?}", op);
            for n in 0..PAGES {
                let at = BASE + n * 0x1000;
                if op.evict >> n & 1 == 1 {
                    w.mmu.unmap(space, at, 12);
                    let _ = w.invalidate(n, space, at, 12);
                }
                model.present[usize::try_from(n).unwrap()] = w.mmu.is_mapped(space, at);
            }
        }
    }

    /// Whatever bytes software writes as descriptors, each completes once, and nothing else is touched.
    #[test]
    fn any_bytes_at_all_complete_once(raw in prop::collection::vec(prop::array::uniform32(any::<u16>()), 1..20)) {
        let mut w = World::new();
        w.enable(0, 5, None);
        w.map(Some(pasid(P)), BASE, GPA, 0x4000);
        let canary = noise(1, 0x1000);
        w.write(GPA + 0x8000, &canary);
        let descriptors: Vec<_> = raw.iter().enumerate().map(|(n, words)| {
            let mut d = <Descriptor as zerocopy::FromBytes>::read_from_bytes(words.as_bytes()).unwrap();
            // Near what is valid, so that not all of them end at the first check.
            d.opcode %= 8;
            d.flags &= 0x1f;
            if d.cookie & 1 == 0 { (d.spaces, d.reserved1, d.operand) = (0.into(), 0, d.operand & 0xff) }
            if d.cookie & 2 == 0 { (d.src, d.dst) = (BASE + (d.src & 0x7fff), BASE + (d.dst & 0x7fff)) }
            if d.cookie & 4 == 0 { d.length &= 0x3fff }
            if d.cookie & 8 == 0 { (d.src_entries, d.dst_entries) = (d.src_entries & 3, d.dst_entries & 3) }
            d.cookie = n as u64;
            if n % 3 != 0 { for_process(pasid(P), d) } else { d }
        }).collect();
        w.submit(0, &descriptors);
        w.settle();
        w.now += TIMEOUT;
        w.settle();
        let mut cookies: Vec<_> = w.reap(0).iter().map(|c| { code(c); c.cookie }).collect();
        cookies.sort_unstable();
        prop_assert_eq!(cookies, (0..raw.len() as u64).collect::<Vec<_>>());
        prop_assert!(w.read(GPA + 0x8000, 0x1000) == canary);
    }
}
