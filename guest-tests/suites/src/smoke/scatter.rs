//! Scatter lists.
use svadev_guest::{Buffer, Descriptor, ScatterEntry};
use svadev_spec::device::MAX_SCATTER_ENTRIES;
use zerocopy::IntoBytes;

use super::opcodes::check_success;
use crate::check_eq;
use crate::harness::{Context, Rng, Test, Verdict, Work};
use crate::memory::{check_bytes, small_pages};

pub(super) const TESTS: &[Test] = &[
    Test::each("scatter.gather_source", gather),
    Test::each("scatter.destination", scatter),
    Test::each("scatter.both_unequal", both),
    Test::each("scatter.one_entry", one_entry),
    Test::each("scatter.longest_list", longest),
    Test::each("scatter.fill_compare_crc", other_opcodes),
    Test::each("scatter.list_across_pages_untouched_data", across_pages),
];

/// Write a list into memory.
pub(super) fn write_list(memory: &Buffer, offset: usize, entries: &[ScatterEntry]) {
    memory.write(offset, entries.as_bytes());
}

/// Pieces of `memory` in random order, without overlap, of random lengths that add up to `total`; with gaps between.
fn pieces(rng: &mut Rng, memory: &Buffer, total: usize, count: usize) -> Vec<(usize, usize)> {
    let mut cuts: Vec<usize> = (0..count - 1).map(|_| 1 + rng.below(total - 1)).collect();
    cuts.extend([0, total]);
    cuts.sort_unstable();
    cuts.dedup();
    let mut at = 0;
    let mut pieces: Vec<(usize, usize)> = Vec::new();
    for pair in cuts.windows(2) {
        let length = pair[1] - pair[0];
        at += rng.below(50);
        pieces.push((at, length));
        at += length;
    }
    assert!(at <= memory.len(), "pieces fit: the test sized the memory for gaps");
    for i in (1..pieces.len()).rev() {
        pieces.swap(i, rng.below(i + 1));
    }
    pieces
}

fn entries(memory: &Buffer, pieces: &[(usize, usize)]) -> Vec<ScatterEntry> {
    pieces.iter().map(|&(at, length)| ScatterEntry { address: memory.at(at), length: length as u64 }).collect()
}

/// The bytes of the pieces, one after another.
fn gathered(memory: &Buffer, pieces: &[(usize, usize)]) -> Vec<u8> {
    pieces.iter().flat_map(|&(at, length)| memory.bytes(at, length)).collect()
}

const TOTAL: usize = 20_000;

fn gather(c: &Context) -> Verdict {
    let (device, mut rng) = (c.bound()?, c.rng());
    let (list, src, dst) = (small_pages(4096)?, small_pages(8 * 4096)?, small_pages(8 * 4096)?);
    src.write(0, &rng.bytes(8 * 4096));
    let pieces = pieces(&mut rng, &src, TOTAL, 30);
    write_list(&list, 0, &entries(&src, &pieces));
    let copy =
        Descriptor::copy(0, dst.at(33), TOTAL as u64).with_src_list(list.address(), u32::try_from(pieces.len())?);
    check_success(&device.go(&copy)?, TOTAL as u64, "gather")?;
    check_bytes(&dst.bytes(33, TOTAL), &gathered(&src, &pieces), "gathered bytes")
}

fn scatter(c: &Context) -> Verdict {
    let (device, mut rng) = (c.bound()?, c.rng());
    let (list, src, dst) = (small_pages(4096)?, small_pages(8 * 4096)?, small_pages(8 * 4096)?);
    let data = rng.bytes(TOTAL);
    src.write(5, &data);
    let pieces = pieces(&mut rng, &dst, TOTAL, 30);
    write_list(&list, 16, &entries(&dst, &pieces));
    let copy = Descriptor::copy(src.at(5), 0, TOTAL as u64).with_dst_list(list.at(16), u32::try_from(pieces.len())?);
    check_success(&device.go(&copy)?, TOTAL as u64, "scatter")?;
    check_bytes(&gathered(&dst, &pieces), &data, "scattered bytes")?;
    let written: usize = pieces.iter().map(|p| p.1).sum();
    let rest = (0..dst.len()).filter(|&i| !pieces.iter().any(|&(at, n)| (at..at + n).contains(&i)));
    let rest: Vec<u8> = rest.map(|i| dst.get(i)).collect();
    check_eq!(rest.len(), dst.len() - written, "bytes in the gaps");
    check_bytes(&rest, &vec![0; rest.len()], "bytes in the gaps")
}

fn both(c: &Context) -> Verdict {
    let (device, mut rng) = (c.bound()?, c.rng());
    let (list, src, dst) = (small_pages(2 * 4096)?, small_pages(8 * 4096)?, small_pages(8 * 4096)?);
    src.write(0, &rng.bytes(8 * 4096));
    for (from_count, to_count) in [(2, 50), (50, 2), (40, 41)] {
        let (from, to) = (pieces(&mut rng, &src, TOTAL, from_count), pieces(&mut rng, &dst, TOTAL, to_count));
        write_list(&list, 0, &entries(&src, &from));
        write_list(&list, 4096, &entries(&dst, &to));
        let copy = Descriptor::copy(0, 0, TOTAL as u64)
            .with_src_list(list.address(), u32::try_from(from.len())?)
            .with_dst_list(list.at(4096), u32::try_from(to.len())?);
        check_success(&device.go(&copy)?, TOTAL as u64, "copy from list to list")?;
        check_bytes(&gathered(&dst, &to), &gathered(&src, &from), "list to list")?;
    }
    Ok(())
}

fn one_entry(c: &Context) -> Verdict {
    let (device, mut rng) = (c.bound()?, c.rng());
    let (list, src, dst) = (small_pages(4096)?, small_pages(4096)?, small_pages(4096)?);
    let data = rng.bytes(777);
    src.write(1, &data);
    write_list(&list, 0, &[ScatterEntry { address: src.at(1), length: 777 }]);
    let copy = Descriptor::copy(0, dst.at(2), 777).with_src_list(list.address(), 1);
    check_success(&device.go(&copy)?, 777, "list of one entry")?;
    check_bytes(&dst.bytes(2, 777), &data, "destination")
}

fn longest(c: &Context) -> Verdict {
    let (device, mut rng) = (c.bound()?, c.rng());
    let count = usize::try_from(MAX_SCATTER_ENTRIES)?;
    let (list, src, dst) = (small_pages(count * 16)?, small_pages(4 * 4096)?, small_pages(4 * 4096)?);
    src.write(0, &rng.bytes(4 * 4096));
    // Backwards in steps of 9 bytes, pieces of 7.
    let pieces: Vec<(usize, usize)> = (0..count).rev().map(|i| (i * 9, 7)).collect();
    write_list(&list, 0, &entries(&src, &pieces));
    let total = count * 7;
    let copy = Descriptor::copy(0, dst.address(), total as u64).with_src_list(list.address(), MAX_SCATTER_ENTRIES);
    check_success(&device.go(&copy)?, total as u64, "longest list")?;
    check_bytes(&dst.bytes(0, total), &gathered(&src, &pieces), "gathered bytes")
}

fn other_opcodes(c: &Context) -> Verdict {
    let (device, mut rng) = (c.bound()?, c.rng());
    let (list, memory, plain) = (small_pages(4096)?, small_pages(8 * 4096)?, small_pages(8 * 4096)?);
    let pieces = pieces(&mut rng, &memory, TOTAL, 20);
    let count = u32::try_from(pieces.len())?;
    write_list(&list, 0, &entries(&memory, &pieces));
    let pattern = rng.next_u64();
    let fill = Descriptor::fill(0, TOTAL as u64, pattern).with_dst_list(list.address(), count);
    check_success(&device.go(&fill)?, TOTAL as u64, "fill of a list")?;
    let expected: Vec<u8> = pattern.to_le_bytes().iter().copied().cycle().take(TOTAL).collect();
    check_bytes(&gathered(&memory, &pieces), &expected, "filled bytes: the pattern runs on across entries")?;
    let crc = Descriptor::crc32c(0, TOTAL as u64).with_src_list(list.address(), count);
    check_eq!(device.go(&crc)?.crc32c(), Some(crc32c::crc32c(&expected)), "CRC of a list");
    plain.write(0, &expected);
    let compare = Descriptor::compare(0, plain.address(), TOTAL as u64).with_src_list(list.address(), count);
    check_success(&device.go(&compare)?, TOTAL as u64, "compare of a list")?;
    plain.write(12_345, &[!expected[12_345]]);
    check_eq!(device.go(&compare)?.mismatch_offset(), Some(12_345), "offset of a difference in a list");
    Ok(())
}

/// A list that crosses pages, in memory that the device faults in, naming memory that it faults in too.
fn across_pages(c: &Context) -> Verdict {
    let device = c.bound()?;
    let (list, src, dst) = (small_pages(2 * 4096)?, small_pages(8 * 4096)?, small_pages(8 * 4096)?);
    src.fill(0x3c);
    let list_at = 4096 - 3 * 16;
    let six: Vec<ScatterEntry> =
        (0..6).map(|i| ScatterEntry { address: dst.at(i * 4096 + 96), length: 4000 }).collect();
    write_list(&list, list_at, &six);
    let copy = Descriptor::copy(src.address(), 0, 24_000).with_dst_list(list.at(list_at), 6);
    check_success(&device.go(&copy)?, 24_000, "scatter into untouched pages")?;
    for i in 0..6 {
        check_bytes(&dst.bytes(i * 4096 + 96, 4000), &[0x3c; 4000], &format!("entry {i}"))?;
        check_bytes(&dst.bytes(i * 4096, 96), &[0; 96], &format!("before entry {i}"))?;
    }
    Ok(())
}
