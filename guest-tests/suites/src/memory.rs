//! Memory of every kind, and what the kernel knows about it.
use std::fs::{File, read_to_string};
use std::os::unix::fs::FileExt;

use nix::sys::mman::MmapAdvise;
use svadev_guest::{Backing, Buffer, PAGE_SIZE};

use crate::harness::{During, Verdict};
use crate::{check, fail};

/// 4 KiB as descriptors count.
pub const PAGE: u64 = 4096;
/// 2 MiB.
pub const HUGE: usize = 2 << 20;
/// 1 GiB.
pub const GIGANTIC: usize = 1 << 30;

/// Bits of a `/proc/self/pagemap` entry (`Documentation/admin-guide/mm/pagemap.rst`): the page is in memory.
const PAGEMAP_PRESENT: u64 = 1 << 63;

/// Anonymous memory in 4 KiB pages, never touched.
///
/// # Errors
/// No memory.
pub fn small_pages(length: usize) -> Verdict<Buffer> {
    let buffer = Buffer::anonymous(length)?;
    buffer.advise(0, buffer.len(), MmapAdvise::MADV_NOHUGEPAGE)?;
    Ok(buffer)
}

/// Anonymous memory that the kernel backs with transparent 2 MiB pages, aligned to them, never touched.
///
/// # Errors
/// No memory.
pub fn transparent_huge(length: usize) -> Verdict<Buffer> {
    let buffer = Buffer::aligned(length, HUGE)?;
    buffer.advise(0, buffer.len(), MmapAdvise::MADV_HUGEPAGE)?;
    Ok(buffer)
}

/// Memory of hugetlbfs pages of 2^`log2` bytes, never touched.
///
/// # Errors
/// None is reserved: init and the launcher see to it, so that is a failure.
pub fn hugetlb(length: usize, log2: u8) -> Verdict<Buffer> {
    let pool = format!("/sys/kernel/mm/hugepages/hugepages-{}kB", (1_u64 << log2) / 1024);
    let free = read_to_string(format!("{pool}/free_hugepages")).unwrap_or_else(|_| "no such pool".into());
    Buffer::new(length, Backing::HugeTlb { log2 })
        .during(format!("{length} bytes of {pool} (free pages: {})", free.trim()))
}

/// Whether the page at an address of this process is in memory; asking does not touch it.
///
/// # Errors
/// The kernel does not say.
pub fn is_present(address: u64) -> Verdict<bool> {
    let map = File::open("/proc/self/pagemap").during("open /proc/self/pagemap")?;
    let mut entry = [0; 8];
    map.read_exact_at(&mut entry, address / PAGE * 8).during("read /proc/self/pagemap")?;
    Ok(u64::from_le_bytes(entry) & PAGEMAP_PRESENT != 0)
}

/// Pages of a range that are in memory.
///
/// # Errors
/// The kernel does not say.
pub fn present_pages(buffer: &Buffer) -> Verdict<usize> {
    let mut count = 0;
    for offset in (0..buffer.len()).step_by(PAGE_SIZE) {
        count += usize::from(is_present(buffer.at(offset))?);
    }
    Ok(count)
}

/// A number of kB from the `/proc/self/smaps` entry that holds an address, such as `AnonHugePages`.
///
/// # Errors
/// Nothing is mapped there, or the kernel has no such field.
pub fn smaps_kb(address: u64, field: &str) -> Verdict<u64> {
    let smaps = read_to_string("/proc/self/smaps").during("read /proc/self/smaps")?;
    let mut inside = false;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if let Some((start, end)) = first.split_once('-') {
            let number = |text: &str| u64::from_str_radix(text, 16);
            if let (Ok(start), Ok(end)) = (number(start), number(end)) {
                inside = (start..end).contains(&address);
            }
        } else if inside && first.strip_suffix(':') == Some(field) {
            return words.next().unwrap_or_default().parse().during(field);
        }
    }
    fail!("/proc/self/smaps says nothing about {field} at {address:#x}")
}

/// Check that bytes are what they should be; a failure shows the first that is not.
///
/// # Errors
/// They are not.
pub fn check_bytes(actual: &[u8], expected: &[u8], what: &str) -> Verdict {
    check!(actual.len() == expected.len(), "{what}: expected {} bytes, actual {}", expected.len(), actual.len());
    if let Some(at) = actual.iter().zip(expected).position(|(a, e)| a != e) {
        let end = (at + 8).min(actual.len());
        let wrong = actual.iter().zip(expected).filter(|(a, e)| a != e).count();
        fail!(
            "{what}: byte {at} of {}: expected {:02x?}, actual {:02x?}; {wrong} bytes differ",
            actual.len(),
            &expected[at..end],
            &actual[at..end]
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn untouched_pages_are_absent_and_touched_ones_present() {
        let buffer = small_pages(3 * PAGE_SIZE).unwrap();
        assert_eq!(present_pages(&buffer).unwrap(), 0);
        buffer.write(PAGE_SIZE, &[1]);
        assert_eq!(present_pages(&buffer).unwrap(), 1);
        assert!(is_present(buffer.at(PAGE_SIZE)).unwrap());
        assert_eq!(smaps_kb(buffer.address(), "Rss").unwrap(), 4);
    }

    #[test]
    fn differing_bytes_are_shown() {
        assert!(check_bytes(b"abc", b"abc", "x").is_ok());
        let e = format!("{:?}", check_bytes(b"abcd", b"abxd", "x").unwrap_err());
        assert!(e.contains("byte 2 of 4") && e.contains("1 bytes differ"), "{e}");
        assert!(check_bytes(b"abc", b"ab", "x").is_err());
    }
}
