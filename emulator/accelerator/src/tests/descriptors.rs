//! Every opcode: results, alignments, page sizes, lists, and descriptors that are wrong.
use svadev_spec::device::{Code, Descriptor, DescriptorFlags, FaultFlags, ScatterEntry, opcode};
use zerocopy::IntoBytes;

use super::world::*;

const P: u32 = 9;
/// Virtual addresses of a process, and where they are.
const SRC: u64 = 0x7f00_0000_0000;
const DST: u64 = 0x7f00_1000_0000;
const SRC_GPA: u64 = 0x100_0000;
const DST_GPA: u64 = 0x200_0000;
const SPAN: u64 = 0x40_0000;

/// A kernel queue, and a process with source and destination mapped by pages of the given size.
fn world(size_log2: u8) -> World {
    let mut w = World::new();
    w.enable(0, 6, None);
    for at in (0..SPAN).step_by(1 << size_log2) {
        w.mmu.map(Some(pasid(P)), SRC + at, size_log2, Page::rw(SRC_GPA + at));
        w.mmu.map(Some(pasid(P)), DST + at, size_log2, Page::rw(DST_GPA + at));
    }
    w
}

fn d(opcode: u8, src: u64, dst: u64, length: u64) -> Descriptor {
    for_process(pasid(P), Descriptor { opcode, cookie: 0xc0, src, dst, length, ..Default::default() })
}

const SIZES: [u64; 12] = [1, 2, 7, 63, 64, 65, 4095, 4096, 4097, 65_535, 65_536, 300_001];
const OFFSETS: [u64; 4] = [0, 1, 4093, 2_097_151];

#[test]
fn copy_moves_every_length_at_every_alignment_by_every_page_size() {
    for size_log2 in [12, 21] {
        let mut w = world(size_log2);
        let data = noise(1, usize::try_from(SPAN).unwrap());
        w.write(SRC_GPA, &data);
        for length in SIZES {
            for (so, to) in OFFSETS.iter().flat_map(|s| OFFSETS.map(|t| (*s, t))) {
                let n = usize::try_from(length).unwrap();
                w.write(DST_GPA + to, &vec![0xee; n + 1]);
                let c = w.run_one(0, d(opcode::COPY, SRC + so, DST + to, length));
                assert_eq!((code(&c), c.bytes_done, c.result, c.fault), (Code::Success, length, 0, 0));
                let from = usize::try_from(so).unwrap();
                assert!(w.read(DST_GPA + to, n) == data[from..from + n], "{length} bytes from {so} to {to}");
                assert_eq!(w.read(DST_GPA + to + length, 1), [0xee], "and not one more");
            }
        }
    }
}

#[test]
fn a_gibibyte_page_is_one_translation() {
    let mut w = World::new();
    w.enable(0, 6, None);
    w.memory.window.store(RAM, std::sync::atomic::Ordering::Relaxed);
    // All of memory in the middle of nowhere: the page is larger than memory, so that only pieces of it can be kept.
    w.mmu.map(Some(pasid(P)), 0x40_0000_0000, 30, Page::rw(0));
    w.write(SRC_GPA, b"hello");
    w.mmu.translated();
    let at = |gpa| 0x40_0000_0000 + gpa;
    let c = w.run_one(0, d(opcode::COPY, at(SRC_GPA), at(DST_GPA), 0x20_0000));
    assert_eq!(code(&c), Code::Success);
    assert_eq!(w.read(DST_GPA, 5), b"hello");
    let asked = w.mmu.translated().iter().filter(|t| t.pasid.is_some()).count();
    assert_eq!(asked, 2, "2 MiB of each operand, one translation each");
    let c = w.run_one(0, d(opcode::COPY, at(SRC_GPA), at(RAM - 0x1000), 0x2000));
    assert_eq!((code(&c), c.bytes_done, c.result), (Code::MemoryError, 0x1000, at(RAM)), "memory ends inside the page");
}

#[test]
fn fill_keeps_its_phase_across_pages_and_slices() {
    let mut w = world(12);
    let pattern = 0x8877_6655_4433_2211u64;
    for length in SIZES {
        for to in OFFSETS {
            let n = usize::try_from(length).unwrap();
            let fill = Descriptor { operand: pattern, ..d(opcode::FILL, 0, DST + to, length) };
            w.write(DST_GPA + to, &vec![0xee; n + 1]);
            let c = w.run_one(0, fill);
            assert_eq!((code(&c), c.bytes_done), (Code::Success, length));
            let want: Vec<u8> = pattern.to_le_bytes().into_iter().cycle().take(n).chain([0xee]).collect();
            assert!(w.read(DST_GPA + to, n + 1) == want, "{length} bytes at {to}");
        }
    }
}

#[test]
fn compare_finds_the_first_difference() {
    let mut w = world(12);
    let data = noise(2, 300_001);
    w.write(SRC_GPA + 3, &data);
    w.write(DST_GPA + 4093, &data);
    let compare = d(opcode::COMPARE, SRC + 3, DST + 4093, 300_001);
    let c = w.run_one(0, compare);
    assert_eq!((code(&c), c.bytes_done, c.result), (Code::Success, 300_001, 0));
    for at in [300_000, 123_456, 4096, 3, 0] {
        let byte = w.read(DST_GPA + 4093 + at, 1)[0];
        w.write(DST_GPA + 4093 + at, &[!byte]);
        let c = w.run_one(0, compare);
        assert_eq!((code(&c), c.bytes_done, c.result), (Code::Mismatch, at, at));
    }
}

#[test]
fn crc_is_that_of_rfc_3720_and_goes_on_from_a_start() {
    let mut w = world(12);
    // RFC 3720 appendix B.4: 32 bytes of zeroes.
    let c = w.run_one(0, d(opcode::CRC32C, SRC, 0, 32));
    assert_eq!((code(&c), c.result), (Code::Success, 0x8a91_36aa));
    w.write(SRC_GPA, b"123456789");
    let first = w.run_one(0, d(opcode::CRC32C, SRC, 0, 4)).result;
    let second = w.run_one(0, Descriptor { operand: first, ..d(opcode::CRC32C, SRC + 4, 0, 5) });
    assert_eq!(second.result, 0xe306_9283, "the check value of CRC-32C");
    let data = noise(3, 200_000);
    w.write(SRC_GPA + 5, &data);
    let c = w.run_one(0, d(opcode::CRC32C, SRC + 5, 0, 200_000));
    assert_eq!(c.result, u64::from(crc32c::crc32c(&data)));
}

/// Writes a list into the process's memory, and returns its address.
fn list(w: &World, offset: u64, entries: &[(u64, u64)]) -> u64 {
    let entries: Vec<_> = entries.iter().map(|&(address, length)| ScatterEntry { address, length }).collect();
    w.write(SRC_GPA + offset, entries.as_bytes());
    SRC + offset
}

#[test]
fn lists_on_both_sides_need_not_match_piece_by_piece() {
    let mut w = world(12);
    let data = noise(4, 100_000);
    w.write(SRC_GPA, &data);
    // The list crosses a page, and so do its pieces.
    let src = list(&w, 0x30_0ff8, &[(SRC + 1, 4095), (SRC + 50_000, 1), (SRC + 10_000, 20_000)]);
    let dst = list(&w, 0x31_0000, &[(DST + 7, 24_000), (DST + 100_000, 96)]);
    let both = DescriptorFlags::SRC_LIST | DescriptorFlags::DST_LIST;
    let copy = Descriptor { flags: both.bits(), src_entries: 3, dst_entries: 2, ..d(opcode::COPY, src, dst, 24_096) };
    let c = w.run_one(0, copy);
    assert_eq!((code(&c), c.bytes_done), (Code::Success, 24_096));
    let want = [&data[1..4096], &data[50_000..50_001], &data[10_000..30_000]].concat();
    assert!(w.read(DST_GPA + 7, 24_000) == want[..24_000]);
    assert!(w.read(DST_GPA + 100_000, 96) == want[24_000..]);
    let crc =
        Descriptor { flags: DescriptorFlags::SRC_LIST.bits(), src_entries: 3, ..d(opcode::CRC32C, src, 0, 24_096) };
    assert_eq!(w.run_one(0, crc).result, u64::from(crc32c::crc32c(&want)));
}

#[test]
fn a_list_of_the_largest_size_is_fetched_once() {
    let mut w = world(12);
    let entries: Vec<_> = (0..1024).map(|n| (SRC + n * 2, 1)).collect();
    let src = list(&w, 0x30_0010, &entries);
    w.write(SRC_GPA, &noise(5, 2048));
    let copy =
        Descriptor { flags: DescriptorFlags::SRC_LIST.bits(), src_entries: 1024, ..d(opcode::COPY, src, DST, 1024) };
    assert_eq!(code(&w.run_one(0, copy)), Code::Success);
    let want: Vec<u8> = noise(5, 2048).into_iter().step_by(2).collect();
    assert!(w.read(DST_GPA, 1024) == want);
    // Five list jobs at once: more than there is room for, so that they take turns.
    assert_eq!(w.run(0, &[copy; 5]).iter().map(code).collect::<Vec<_>>(), [Code::Success; 5]);
}

#[test]
fn lists_that_are_wrong_have_their_codes() {
    let mut w = world(12);
    let flag = DescriptorFlags::SRC_LIST.bits();
    for (entries, length, want) in [
        (&[(SRC, 10), (SRC, 10)][..], 21, Code::BadList),
        (&[(SRC, 10), (SRC, 0)], 10, Code::BadList),
        (&[(0, u64::MAX), (0, 2)], 1, Code::BadList),
        (&[(u64::MAX, 2)], 2, Code::BadAddress),
        (&[(SRC, 10), (DST + 5, 10)], 20, Code::Overlap),
    ] {
        let src = list(&w, 0x30_0000, entries);
        let count = u32::try_from(entries.len()).unwrap();
        let copy = Descriptor { flags: flag, src_entries: count, ..d(opcode::COPY, src, DST, length) };
        let c = w.run_one(0, copy);
        assert_eq!((code(&c), c.bytes_done), (want, 0), "{entries:x?}");
    }
}

#[test]
fn wrong_descriptors_complete_with_their_codes_and_harm_nobody() {
    let mut w = world(12);
    let good = d(opcode::COPY, SRC, DST, 64);
    let bad = [
        (Descriptor { opcode: 200, ..good }, Code::BadOpcode),
        (Descriptor { flags: 0x80, ..good }, Code::BadFlags),
        (Descriptor { reserved1: 1, ..good }, Code::BadReserved),
        (Descriptor { length: 0, ..good }, Code::BadLength),
        (Descriptor { src: DST + 1, ..good }, Code::Overlap),
        (Descriptor { src: u64::MAX - 1, ..good }, Code::BadAddress),
        (for_process(pasid(77), good), Code::TranslationBlocked),
    ];
    for (descriptor, want) in bad {
        let done = w.run(0, &[good, descriptor, good]);
        let mut codes: Vec<_> = done.iter().map(|c| code(c) as u16).collect();
        codes.sort_unstable();
        assert_eq!(codes, [0, 0, want as u16]);
    }
}

#[test]
fn a_refused_access_names_its_address() {
    let mut w = world(12);
    let c = w.run_one(0, for_process(pasid(77), d(opcode::COPY, SRC + 5, DST, 64)));
    assert_eq!((code(&c), c.result, c.fault), (Code::TranslationBlocked, SRC + 5, FaultFlags::ADDRESS_VALID.bits()));
    w.memory.rom.store(DST_GPA, std::sync::atomic::Ordering::Relaxed);
    let c = w.run_one(0, d(opcode::COPY, SRC, DST + 3, 64));
    let want = FaultFlags::ADDRESS_VALID | FaultFlags::WRITE;
    assert_eq!((code(&c), c.result, c.fault), (Code::MemoryError, DST + 3, want.bits()), "read-only memory");
    w.mmu.map(Some(pasid(P)), SRC, 12, Page::rw(RAM));
    w.mmu.translated();
    let _ = w.invalidate(1, Some(pasid(P)), SRC, 12);
    let c = w.run_one(0, d(opcode::CRC32C, SRC, 0, 64));
    assert_eq!((code(&c), c.result), (Code::MemoryError, SRC), "beyond the end of memory");
}

#[test]
fn interrupts_are_raised_for_those_who_asked() {
    let mut w = world(12);
    w.enable(1, 4, None);
    let nop = Descriptor::default();
    let loud = Descriptor { flags: DescriptorFlags::INTERRUPT.bits(), ..nop };
    w.run(1, &[nop, nop]);
    assert!(w.ports.interrupts.lock().unwrap().is_empty());
    w.run(1, &[loud]);
    assert_eq!(*w.ports.interrupts.lock().unwrap(), [1]);
    w.run(0, &[Descriptor { flags: DescriptorFlags::INTERRUPT.bits(), opcode: 99, ..nop }]);
    assert_eq!(*w.ports.interrupts.lock().unwrap(), [1, 0], "an error is a completion too");
}
