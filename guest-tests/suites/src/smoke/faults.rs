//! Accesses that must end in a fault, with its address and what was done before it.
#![allow(unsafe_code, reason = "userfaultfd, which has no wrapper, and a mapping that grows down")]
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use svadev_guest::{Buffer, Code, Descriptor, ScatterEntry};

use super::opcodes::{check_fault, check_success};
use crate::harness::{Context, During, Test, Verdict, Work};
use crate::memory::{PAGE, check_bytes, is_present, small_pages};
use crate::{check, check_eq, fail};

pub(super) const TESTS: &[Test] = &[
    Test::each("fault.unmapped", unmapped),
    Test::each("fault.null", null),
    Test::each("fault.hole", hole),
    Test::each("fault.unaligned_operands", unaligned),
    Test::each("fault.read_only", read_only),
    Test::each("fault.prot_none", prot_none),
    Test::each("fault.beyond_end_of_file", beyond_eof),
    Test::each("fault.kernel_address", kernel_address),
    Test::each("fault.non_canonical", non_canonical),
    Test::each("fault.list_in_unmapped_memory", list_unmapped),
    Test::each("fault.list_entry_unmapped", list_entry),
    Test::each("fault.userfaultfd_range", userfaultfd).needs_page_requests(),
    Test::each("fault.stack_does_not_grow", stack_growth),
    Test::each("fault.address_space_end", last_page),
];

/// Where something was mapped and nothing is now.
fn wild() -> Verdict<u64> {
    Ok(small_pages(16 * 4096)?.unmap())
}

fn unmapped(c: &Context) -> Verdict {
    let device = c.bound()?;
    let memory = small_pages(4096)?;
    memory.fill(1);
    let wild = wild()?;
    for stop in [false, true] {
        let policy = |d: Descriptor| if stop { d.stop_on_fault() } else { d };
        c.step(format!("stop: {stop}"));
        let read = device.go(&policy(Descriptor::copy(wild, memory.address(), PAGE)))?;
        check_fault(&read, wild, 0, false, "copy from unmapped memory")?;
        let write = device.go(&policy(Descriptor::copy(memory.address(), wild, PAGE)))?;
        check_fault(&write, wild, 0, true, "copy to unmapped memory")?;
        let fill = device.go(&policy(Descriptor::fill(wild, 3 * PAGE, 0)))?;
        check_fault(&fill, wild, 0, true, "fill of unmapped memory")?;
        let compare = device.go(&policy(Descriptor::compare(memory.address(), wild, PAGE)))?;
        check_fault(&compare, wild, 0, false, "compare with unmapped memory")?;
        let crc = device.go(&policy(Descriptor::crc32c(wild, 1)))?;
        check_fault(&crc, wild, 0, false, "CRC of unmapped memory")?;
    }
    check_bytes(&memory.bytes(0, 4096), &[1; 4096], "memory that faulting work named")
}

fn null(c: &Context) -> Verdict {
    let device = c.bound()?;
    let memory = small_pages(4096)?;
    check_fault(&device.go(&Descriptor::copy(0, memory.address(), 64))?, 0, 0, false, "copy from address 0")?;
    check_fault(&device.go(&Descriptor::fill(0, 64, 0))?, 0, 0, true, "fill at address 0")
}

/// Two pages, a hole, two pages: what lies before the hole is done, what lies behind it is not promised.
fn hole(c: &Context) -> Verdict {
    let device = c.bound()?;
    let mut front = small_pages(5 * 4096)?;
    let mut gap = front.split_off(2 * 4096);
    let back = gap.split_off(4096);
    let gap = gap.unmap();
    let other = small_pages(5 * 4096)?;
    let data = c.rng().bytes(5 * 4096);
    other.write(0, &data);
    front.fill(0);
    back.fill(0);
    let write = device.go(&Descriptor::copy(other.address(), front.address(), 5 * PAGE))?;
    check_fault(&write, gap, 2 * PAGE, true, "copy over a hole")?;
    check_bytes(&front.bytes(0, 2 * 4096), &data[..2 * 4096], "bytes before the hole")?;
    let read = device.go(&Descriptor::copy(front.address(), other.address(), 5 * PAGE))?;
    check_fault(&read, gap, 2 * PAGE, false, "copy from a hole")?;
    let crc = device.go(&Descriptor::crc32c(front.address(), 5 * PAGE))?;
    check_fault(&crc, gap, 2 * PAGE, false, "CRC over a hole")
}

/// Operands that start within a page: the fault is in the page that lacks, and no byte of it counts as done.
fn unaligned(c: &Context) -> Verdict {
    let device = c.bound()?;
    let mut front = small_pages(2 * 4096)?;
    let gap = front.split_off(4096).unmap();
    front.fill(7);
    let dst = small_pages(2 * 4096)?;
    for start in [1, 100, 4095] {
        let done = device.go(&Descriptor::copy(front.at(start), dst.address(), PAGE))?;
        check_eq!(done.code, Code::PageFault, "copy from +{start}: {done}");
        let address = done.fault_address().unwrap_or(0);
        check_eq!(address & !(PAGE - 1), gap, "page of the fault, copy from +{start}: {done}");
        check!(!done.fault_is_write(), "copy from +{start}: expected a read fault, actual {done}");
        check!(
            done.bytes_done <= 4096 - start as u64,
            "copy from +{start}: expected at most {} bytes done, actual {done}",
            4096 - start
        );
    }
    Ok(())
}

/// A page that may be read and not written; what is touched already and what is not.
fn read_only(c: &Context) -> Verdict {
    let device = c.bound()?;
    let (memory, other) = (small_pages(2 * 4096)?, small_pages(2 * 4096)?);
    memory.write(0, &[0x77; 4096]);
    memory.protect(0, 2 * 4096, ProtFlags::PROT_READ)?;
    let read = device.go(&Descriptor::copy(memory.address(), other.address(), 2 * PAGE))?;
    check_success(&read, 2 * PAGE, "copy from read-only memory")?;
    for offset in [0, 4096] {
        let write = device.go(&Descriptor::copy(other.address(), memory.at(offset), 64))?;
        check_fault(&write, memory.at(offset), 0, true, "copy to read-only memory")?;
        let stop = device.go(&Descriptor::fill(memory.at(offset), 64, 0).stop_on_fault())?;
        check_fault(&stop, memory.at(offset), 0, true, "fill of read-only memory, policy to stop")?;
    }
    check_bytes(&memory.bytes(0, 4096), &[0x77; 4096], "read-only memory")?;
    c.step("right upgrade: what may be written again is written, not refused for ever");
    memory.protect(0, 2 * 4096, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
    check_success(&device.go(&Descriptor::fill(memory.address(), 2 * PAGE, 0))?, 2 * PAGE, "fill")
}

fn prot_none(c: &Context) -> Verdict {
    let device = c.bound()?;
    let (memory, other) = (small_pages(2 * 4096)?, small_pages(4096)?);
    memory.write(0, &[0x77; 4096]);
    memory.protect(0, 2 * 4096, ProtFlags::PROT_NONE)?;
    for offset in [0, 4096] {
        let read = device.go(&Descriptor::copy(memory.at(offset), other.address(), PAGE))?;
        check_fault(&read, memory.at(offset), 0, false, "copy from forbidden memory")?;
        let write = device.go(&Descriptor::fill(memory.at(offset), PAGE, 0))?;
        check_fault(&write, memory.at(offset), 0, true, "fill of forbidden memory")?;
    }
    memory.protect(0, 2 * 4096, ProtFlags::PROT_READ)?;
    check_bytes(&memory.bytes(0, 4096), &[0x77; 4096], "memory after it was forbidden")
}

/// Where a process would get SIGBUS.
fn beyond_eof(c: &Context) -> Verdict {
    let device = c.bound()?;
    let file = nix::sys::memfd::memfd_create(c"svadev", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
    nix::unistd::ftruncate(&file, 4096)?;
    let map = Buffer::file(&file, 0, 2 * 4096, true)?;
    let done = device.go(&Descriptor::crc32c(map.address(), 2 * PAGE))?;
    check_fault(&done, map.at(4096), PAGE, false, "CRC beyond the end of a file")
}

/// The kernel's half of the address space, which the process' own page tables hold too, for the kernel only.
fn kernel_address(c: &Context) -> Verdict {
    let device = c.bound()?;
    let memory = small_pages(4096)?;
    memory.fill(0x42);
    // Direct map, kernel text, vmalloc (Documentation/arch/x86/x86_64/mm.rst), with 4 and with 5 levels.
    for address in [0xffff_8880_0000_0000, 0xffff_ffff_8100_0000, 0xffff_c900_0000_0000, 0xff11_0000_0000_0000] {
        c.step(format!("kernel address {address:#x}"));
        for descriptor in
            [Descriptor::copy(address, memory.address(), 64), Descriptor::copy(memory.address(), address, 64)]
        {
            refused(&device.go(&descriptor)?, address)?;
        }
    }
    check_bytes(&memory.bytes(0, 4096), &[0x42; 4096], "memory of the process")?;
    c.still_serves()
}

/// Addresses that no page table can hold, with 48 or 57 bits.
fn non_canonical(c: &Context) -> Verdict {
    let device = c.bound()?;
    let memory = small_pages(4096)?;
    memory.fill(0x42);
    for address in [0x0200_0000_0000_0000, 0x8000_0000_0000_0000, 0xfdff_ffff_ffff_f000, 0xaaaa_aaaa_aaaa_a000] {
        c.step(format!("non-canonical address {address:#x}"));
        for descriptor in
            [Descriptor::copy(address, memory.address(), 64), Descriptor::copy(memory.address(), address, 64)]
        {
            refused(&device.go(&descriptor)?, address)?;
        }
    }
    check_bytes(&memory.bytes(0, 4096), &[0x42; 4096], "memory of the process")?;
    c.still_serves()
}

/// The IOMMU may refuse such an address itself or ask the kernel, which refuses it: both are right.
fn refused(done: &svadev_guest::Completion, address: u64) -> Verdict {
    check!(
        matches!(done.code, Code::PageFault | Code::TranslationBlocked),
        "expected PageFault or TranslationBlocked, actual {done}"
    );
    check_eq!(done.bytes_done, 0, "bytes done");
    if done.code == Code::PageFault {
        check_eq!(done.fault_address(), Some(address), "address of {done}");
    }
    Ok(())
}

fn list_unmapped(c: &Context) -> Verdict {
    let device = c.bound()?;
    let memory = small_pages(4096)?;
    let wild = wild()?;
    for stop in [false, true] {
        let copy = Descriptor::copy(0, memory.address(), 128).with_src_list(wild, 2);
        let done = device.go(&if stop { copy.stop_on_fault() } else { copy })?;
        check_fault(&done, wild, 0, false, "source list in unmapped memory")?;
        let copy = Descriptor::copy(memory.address(), 0, 128).with_dst_list(wild, 2);
        let done = device.go(&if stop { copy.stop_on_fault() } else { copy })?;
        // The list is read, whatever is done with what it names.
        check_fault(&done, wild, 0, false, "destination list in unmapped memory")?;
    }
    Ok(())
}

fn list_entry(c: &Context) -> Verdict {
    let device = c.bound()?;
    let (list, memory) = (small_pages(4096)?, small_pages(2 * 4096)?);
    memory.fill(3);
    let wild = wild()?;
    let entries = [
        ScatterEntry { address: memory.address(), length: 1000 },
        ScatterEntry { address: wild, length: 1000 },
        ScatterEntry { address: memory.address(), length: 1000 },
    ];
    super::scatter::write_list(&list, 0, &entries);
    let copy = Descriptor::copy(0, memory.at(4096), 3000).with_src_list(list.address(), 3);
    check_fault(&device.go(&copy)?, wild, 1000, false, "second entry of a list is unmapped")
}

/// `UFFDIO_API` and `UFFDIO_REGISTER` (include/uapi/linux/userfaultfd.h).
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
const UFFD_API: u64 = 0xaa;
const UFFDIO_REGISTER_MODE_MISSING: u64 = 1;

/// A range whose missing pages a program wants to provide itself: the kernel's SVA handler does not wait for it.
fn userfaultfd(c: &Context) -> Verdict {
    let device = c.bound()?;
    let memory = small_pages(2 * 4096)?;
    memory.write(4096, &[9; 4096]);
    // SAFETY: the call takes flags and returns a descriptor; it touches no memory.
    let raw = Errno::result(unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) })
        .during("userfaultfd(2)")?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows its number.
    let uffd = unsafe { OwnedFd::from_raw_fd(i32::try_from(raw)?) };
    // struct uffdio_api: api, features, ioctls.
    let mut api = [UFFD_API, 0, 0];
    // SAFETY: UFFDIO_API reads and writes three u64.
    Errno::result(unsafe { libc::ioctl(uffd.as_raw_fd(), UFFDIO_API, api.as_mut_ptr()) }).during("UFFDIO_API")?;
    // struct uffdio_register: start, len, mode, ioctls.
    let mut register = [memory.address(), 2 * PAGE, UFFDIO_REGISTER_MODE_MISSING, 0];
    // SAFETY: UFFDIO_REGISTER reads and writes four u64; the range is a mapping of ours.
    Errno::result(unsafe { libc::ioctl(uffd.as_raw_fd(), UFFDIO_REGISTER, register.as_mut_ptr()) })
        .during("UFFDIO_REGISTER")?;
    let missing = device.go(&Descriptor::fill(memory.address(), PAGE, 0))?;
    check_fault(&missing, memory.address(), 0, true, "missing page of a userfaultfd range")?;
    let present = device.go(&Descriptor::crc32c(memory.at(4096), PAGE))?;
    check_success(&present, PAGE, "present page of a userfaultfd range")?;
    drop(uffd);
    c.step("closed: the range is ordinary memory again");
    check_success(&device.go(&Descriptor::fill(memory.address(), PAGE, 0))?, PAGE, "fill")
}

/// A mapping that grows when the process touches below it does not grow for the device.
fn stack_growth(c: &Context) -> Verdict {
    let device = c.bound()?;
    // Room first, so that what lies below the stack is known to be free.
    let room = small_pages(64 * 4096)?;
    let top = room.at(60 * 4096);
    room.unmap();
    let Some(address) = NonZeroUsize::new(usize::try_from(top)?) else { fail!("no address") };
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_GROWSDOWN | MapFlags::MAP_FIXED_NOREPLACE;
    let size = NonZeroUsize::new(4 * 4096).expect("not zero");
    // SAFETY: with MAP_FIXED_NOREPLACE the mapping replaces nothing: should the room be taken, the call fails.
    let stack = unsafe { mmap_anonymous(Some(address), size, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags) };
    let stack = stack.during("map a range that grows down")?;
    let inside = device.go(&Descriptor::fill(top, PAGE, 1))?;
    check_success(&inside, PAGE, "fill of the stack's lowest page")?;
    let below = device.go(&Descriptor::fill(top - PAGE, PAGE, 1))?;
    check_fault(&below, top - PAGE, 0, true, "fill of the page below the stack")?;
    check!(!is_present(top - PAGE)?, "the stack grew for the device");
    // SAFETY: the mapping made above, which nothing refers to.
    unsafe { munmap(stack, 4 * 4096) }?;
    Ok(())
}

/// The last page of a process' address space, with nothing behind it.
fn last_page(c: &Context) -> Verdict {
    let device = c.bound()?;
    let memory = small_pages(4096)?;
    // TASK_SIZE_MAX with 4 and with 5 levels (arch/x86/include/asm/page_64_types.h): user addresses end below it.
    for end in [0x0000_7fff_ffff_f000_u64, 0x00ff_ffff_ffff_f000] {
        c.step(format!("addresses around {end:#x}"));
        let done = device.go(&Descriptor::copy(end - 32, memory.address(), 64))?;
        check!(
            matches!(done.code, Code::PageFault | Code::TranslationBlocked),
            "copy across {end:#x}: expected a fault, actual {done}"
        );
        check_eq!(done.bytes_done, 0, "bytes done across {end:#x}");
    }
    device.collect(0, Duration::ZERO).map(drop)
}
