//! Pages of every size and from every source.
use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use svadev_guest::{Backing, Buffer, Descriptor};

use super::opcodes::check_success;
use crate::harness::peer::Peer;
use crate::harness::{Context, During, Test, Verdict, Work};
use crate::memory::{
    GIGANTIC, HUGE, check_bytes, hugetlb, is_present, present_pages, small_pages, smaps_kb, transparent_huge,
};
use crate::{check, check_eq};

pub(super) const TESTS: &[Test] = &[
    Test::each("pages.small", small),
    Test::each("pages.transparent_huge", thp),
    Test::each("pages.transparent_huge_split", thp_split),
    Test::each("pages.hugetlb_2m", hugetlb_2m),
    Test::each("pages.hugetlb_1g", hugetlb_1g),
    Test::each("pages.file_shared", file_shared),
    Test::each("pages.file_private", file_private),
    Test::each("pages.file_never_read", file_cold).needs_page_requests(),
    Test::each("pages.shared_with_a_process", shared_memory).needs_page_requests(),
    Test::each("pages.zero_page_is_not_written", zero_page),
];

fn small(c: &Context) -> Verdict {
    let device = c.bound()?;
    let length = 32 * 4096;
    let (src, dst) = (small_pages(length)?, small_pages(length)?);
    let data = c.rng().bytes(length);
    src.write(0, &data);
    let done = device.go(&Descriptor::copy(src.address(), dst.address(), length as u64))?;
    check_success(&done, length as u64, "copy into 32 untouched pages")?;
    check_eq!(present_pages(&dst)?, 32, "pages that the device brought in");
    check_bytes(&dst.bytes(0, length), &data, "destination")
}

/// Fill and check memory of huge pages, cold and warm.
fn huge(c: &Context, memory: &Buffer) -> Verdict {
    let device = c.bound()?;
    let edge = memory.len() - 4096;
    c.step("the device touches a huge page first");
    let pattern = c.rng().next_u64();
    check_success(&device.go(&Descriptor::fill(memory.at(edge), 4096, pattern))?, 4096, "fill of the last 4 KiB")?;
    check_bytes(&memory.bytes(edge, 4096), &pattern.to_le_bytes().repeat(512), "last 4 KiB")?;
    c.step("copy within and across huge pages");
    let data = c.rng().bytes(10_000);
    for (from, to) in [(12_345, HUGE / 2 + 1), (0, memory.len() - 10_000), (HUGE - 5000, HUGE / 4)] {
        if from + data.len() > memory.len() {
            continue;
        }
        memory.write(from, &data);
        let done = device.go(&Descriptor::copy(memory.at(from), memory.at(to), data.len() as u64))?;
        check_success(&done, data.len() as u64, &format!("copy from +{from} to +{to}"))?;
        check_bytes(&memory.bytes(to, data.len()), &data, &format!("copy from +{from} to +{to}"))?;
    }
    Ok(())
}

fn thp(c: &Context) -> Verdict {
    let memory = transparent_huge(2 * HUGE)?;
    huge(c, &memory)?;
    let kb = smaps_kb(memory.address(), "AnonHugePages")?;
    check!(kb >= 2048, "expected huge pages behind the memory, actual {kb} kB: did a device fault not get one?");
    Ok(())
}

/// A huge page that is split under a translation that the device holds.
fn thp_split(c: &Context) -> Verdict {
    let memory = transparent_huge(HUGE)?;
    huge(c, &memory)?;
    let device = c.bound()?;
    let data = c.rng().bytes(HUGE);
    memory.write(0, &data);
    check_success(&device.go(&Descriptor::crc32c(memory.address(), HUGE as u64))?, HUGE as u64, "CRC")?;
    c.step("splitting it: one page in its middle gets another right");
    memory.protect(HUGE / 2, 4096, nix::sys::mman::ProtFlags::PROT_READ)?;
    let done = device.go(&Descriptor::crc32c(memory.address(), HUGE as u64))?;
    check_eq!(done.crc32c(), Some(crc32c::crc32c(&data)), "CRC after the split");
    let write = device.go(&Descriptor::fill(memory.at(HUGE / 2), 8, 0))?;
    super::opcodes::check_fault(&write, memory.at(HUGE / 2), 0, true, "write to the page that is read-only now")
}

fn hugetlb_2m(c: &Context) -> Verdict {
    let memory = hugetlb(2 * HUGE, 21)?;
    huge(c, &memory)
}

fn hugetlb_1g(c: &Context) -> Verdict {
    let flags = std::fs::read_to_string("/proc/cpuinfo").during("read /proc/cpuinfo")?;
    if !flags.lines().any(|l| l.starts_with("flags") && l.split_whitespace().any(|f| f == "pdpe1gb")) {
        crate::skip!("this virtual CPU has no 1 GiB pages (pdpe1gb)");
    }
    let memory = hugetlb(GIGANTIC, 30)?;
    huge(c, &memory)
}

/// A file on tmpfs, gone from its folder but open.
fn file(length: usize, data: &[u8]) -> Verdict<std::fs::File> {
    // O_TMPFILE: no name, so nothing is left behind however the test ends.
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .open("/tmp")
        .during("make a file in /tmp")?;
    file.set_len(length as u64).during("size the file")?;
    file.write_all_at(data, 0).during("write the file")?;
    Ok(file)
}

/// What the device writes to a shared mapping is in the file, and what is written to the file is what the device reads.
fn file_shared(c: &Context) -> Verdict {
    let device = c.bound()?;
    let length = 8 * 4096;
    let data = c.rng().bytes(length);
    let file = file(2 * length, &data)?;
    let (src, dst) =
        (Buffer::file(&file, 0, length, true)?, Buffer::file(&file, i64::try_from(length)?, length, true)?);
    let done = device.go(&Descriptor::copy(src.address(), dst.address(), length as u64))?;
    check_success(&done, length as u64, "copy within a file")?;
    let mut second = vec![0; length];
    file.read_exact_at(&mut second, length as u64).during("read the file")?;
    check_bytes(&second, &data, "second half of the file")?;
    c.step("a change by write(2) is what the device reads");
    file.write_all_at(b"changed", 4096).during("write the file")?;
    let mut expected = data;
    expected[4096..4103].copy_from_slice(b"changed");
    let done = device.go(&Descriptor::crc32c(src.address(), length as u64))?;
    check_eq!(done.crc32c(), Some(crc32c::crc32c(&expected)), "CRC of the changed file");
    Ok(())
}

/// What the device writes to a private mapping is not in the file.
fn file_private(c: &Context) -> Verdict {
    let device = c.bound()?;
    let length = 8 * 4096;
    let data = c.rng().bytes(length);
    let file = file(length, &data)?;
    let map = Buffer::file(&file, 0, length, false)?;
    let before = device.go(&Descriptor::crc32c(map.address(), length as u64))?;
    check_eq!(before.crc32c(), Some(crc32c::crc32c(&data)), "CRC of the mapping");
    c.step("the device writes: the mapping gets copies");
    let done = device.go(&Descriptor::fill(map.at(4096), 2 * 4096, 0))?;
    check_success(&done, 2 * 4096, "fill of a private file mapping")?;
    let mut expected = data.clone();
    expected[4096..3 * 4096].fill(0);
    check_bytes(&map.bytes(0, length), &expected, "mapping")?;
    let mut content = vec![0; length];
    file.read_exact_at(&mut content, 0).during("read the file")?;
    check_bytes(&content, &data, "file")
}

/// Mapped, never touched by the process, in the page cache only.
fn file_cold(c: &Context) -> Verdict {
    let device = c.bound()?;
    let length = 16 * 4096;
    let data = c.rng().bytes(length);
    let file = file(length, &data)?;
    for shared in [true, false] {
        let map = Buffer::file(&file, 0, length, shared)?;
        check!(!is_present(map.address())?, "a new mapping is present already");
        let done = device.go(&Descriptor::crc32c(map.address(), length as u64))?;
        check_eq!(done.crc32c(), Some(crc32c::crc32c(&data)), "CRC of a cold mapping, shared: {shared}");
    }
    Ok(())
}

/// Memory that two processes share: what one's device writes, the other sees, each by its own binding.
fn shared_memory(c: &Context) -> Verdict {
    let length = 8 * 4096;
    let memory = Buffer::new(2 * length, Backing::AnonymousShared)?;
    let data = c.rng().bytes(length);
    memory.write(0, &data);
    let mut other = Peer::start(|line| {
        let device = c.bound()?;
        line.recv()?;
        let done = device.go(&Descriptor::copy(memory.at(length), memory.address(), length as u64))?;
        check_success(&done, length as u64, "the other process' copy back")?;
        line.send(0)?;
        line.recv()?;
        Ok(())
    })?;
    let device = c.bound()?;
    let done = device.go(&Descriptor::copy(memory.address(), memory.at(length), length as u64))?;
    check_success(&done, length as u64, "copy")?;
    memory.write(0, &vec![0; length]);
    other.line.send(0)?;
    other.line.recv()?;
    check_bytes(&memory.bytes(0, length), &data, "what the other process' device copied back")?;
    other.line.send(0)?;
    other.join()
}

/// Read first, then written: the kernel's page of zeros, shared by everyone, must not take the write.
fn zero_page(c: &Context) -> Verdict {
    let device = c.bound()?;
    let (memory, other) = (small_pages(4 * 4096)?, small_pages(4 * 4096)?);
    c.step("both memories are read: both map the page of zeros");
    let zeros = Descriptor::compare(memory.address(), other.address(), 4 * 4096);
    check_success(&device.go(&zeros)?, 4 * 4096, "zeros against zeros")?;
    check_success(&device.go(&Descriptor::fill(memory.address(), 4 * 4096, u64::MAX))?, 4 * 4096, "fill")?;
    check_bytes(&memory.bytes(0, 4 * 4096), &[0xff; 4 * 4096], "filled memory")?;
    check_bytes(&other.bytes(0, 4 * 4096), &[0; 4 * 4096], "memory that nobody wrote")
}
