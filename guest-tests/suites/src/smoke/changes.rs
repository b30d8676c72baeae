//! The address space changes while the device uses it: never stale data, never a write to memory that was given back.
#![allow(unsafe_code, reason = "mremap and a mapping at a fixed address")]
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::mman::{MRemapFlags, MapFlags, MmapAdvise, ProtFlags, mmap_anonymous, mremap, munmap};
use svadev_guest::{Code, Completion, Descriptor, Device};

use super::opcodes::{check_fault, check_success};
use crate::harness::peer::Peer;
use crate::harness::{Context, During, Test, Verdict, Work};
use crate::memory::{HUGE, PAGE, check_bytes, small_pages, transparent_huge};
use crate::swap::Swap;
use crate::{check, check_eq};

pub(super) const TESTS: &[Test] = &[
    Test::each("change.munmap_then_access", munmap_then_access),
    Test::each("change.munmap_then_map_again", map_again),
    Test::each("change.munmap_under_dma", munmap_under_dma),
    Test::each("change.mprotect_under_dma", mprotect_under_dma),
    Test::each("change.mremap_moves", mremap_moves),
    Test::each("change.dontneed_reads_zeros", dontneed).needs_page_requests(),
    Test::each("change.dontneed_under_dma", dontneed_under_dma).needs_page_requests(),
    Test::each("change.free_then_write_stays", madv_free).needs_page_requests(),
    Test::each("change.pageout_under_dma", pageout_under_dma).needs_page_requests(),
    Test::each("change.huge_page_collapse", collapse),
    Test::each("change.cow_after_fork", cow_after_fork).needs_page_requests(),
    Test::each("change.cow_read_before_write", cow_read_first).needs_page_requests(),
];

fn munmap_then_access(c: &Context) -> Verdict {
    let device = c.bound()?;
    let (memory, other) = (small_pages(4 * 4096)?, small_pages(4 * 4096)?);
    memory.fill(1);
    other.fill(2);
    let at = memory.address();
    c.step("the device uses the memory, so it holds translations");
    check_success(&device.go(&Descriptor::copy(at, other.address(), 4 * PAGE))?, 4 * PAGE, "before munmap")?;
    check_success(&device.go(&Descriptor::copy(other.address(), at, 4 * PAGE))?, 4 * PAGE, "before munmap")?;
    memory.unmap();
    check_fault(&device.go(&Descriptor::copy(at, other.address(), PAGE))?, at, 0, false, "read after munmap")?;
    check_fault(&device.go(&Descriptor::fill(at, PAGE, 0))?, at, 0, true, "write after munmap")
}

/// New memory at the old address: the device sees the new, not what its translation once led to.
fn map_again(c: &Context) -> Verdict {
    let device = c.bound()?;
    let length = 4 * 4096;
    let mut data = c.rng();
    for round in 0..20 {
        let memory = small_pages(length)?;
        let bytes = data.bytes(length);
        memory.write(0, &bytes);
        let at = memory.address();
        let crc = device.go(&Descriptor::crc32c(at, length as u64))?;
        check_eq!(crc.crc32c(), Some(crc32c::crc32c(&bytes)), "round {round}: CRC of the old memory");
        memory.unmap();
        let size = NonZeroUsize::new(length).expect("not zero");
        let address = NonZeroUsize::new(usize::try_from(at)?);
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED_NOREPLACE;
        // SAFETY: with MAP_FIXED_NOREPLACE the mapping replaces nothing.
        let again = unsafe { mmap_anonymous(address, size, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags) }
            .during("map at the same address")?;
        let crc = device.go(&Descriptor::crc32c(at, length as u64))?;
        check_eq!(crc.crc32c(), Some(crc32c::crc32c(&vec![0; length])), "round {round}: CRC of the new memory");
        // SAFETY: the mapping made above, which nothing refers to.
        unsafe { munmap(again, length) }?;
    }
    Ok(())
}

/// An address where the kernel puts nothing by itself: it maps from the top of the lower 47 bits downwards. What is unmapped
/// here does not become somebody else's allocation.
const PLACE: u64 = 0x2000_0000_0000;

/// How long a race goes on.
const RACE: Duration = Duration::from_millis(600);
/// Rounds of a race after which it has gone on long enough, whatever the clock says.
const MAX_ROUNDS: u32 = 400;

/// Run `change` again and again while a thread submits what `work` makes; each completion goes to `judge`.
fn race(
    device: &Device,
    work: impl Fn(u64) -> Descriptor + Send + Sync,
    judge: impl Fn(&Completion) -> Verdict + Send + Sync,
    mut change: impl FnMut(u32) -> Verdict,
) -> Verdict {
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let device_side = scope.spawn(|| -> Verdict {
            while !stop.load(Ordering::Acquire) {
                let cookie = done.load(Ordering::Relaxed);
                judge(&device.go(&work(cookie).with_cookie(cookie))?)?;
                done.fetch_add(1, Ordering::Release);
            }
            Ok(())
        });
        let result = (|| {
            let start = Instant::now();
            for round in 0..MAX_ROUNDS {
                change(round)?;
                if start.elapsed() > RACE || device_side.is_finished() {
                    break;
                }
            }
            // A race in which the device did nothing shows nothing.
            let limit = Instant::now() + Duration::from_secs(5);
            while done.load(Ordering::Acquire) < 10 && !device_side.is_finished() {
                check!(Instant::now() < limit, "the device did {} descriptors", done.load(Ordering::Acquire));
                std::thread::yield_now();
            }
            Ok(())
        })();
        stop.store(true, Ordering::Release);
        let device_result = device_side.join().expect("the submitting thread does not panic");
        device_result.and(result)
    })
}

/// Done, or a page fault: what a race may end in.
fn done_or_fault(completion: &Completion) -> Verdict {
    check!(
        matches!(completion.code, Code::Success | Code::PageFault),
        "in a race: expected Success or PageFault, actual {completion}"
    );
    Ok(())
}

/// The device writes a range that comes and goes. When munmap has returned, the pages belong to whoever gets them next:
/// fresh memory, filled right away, must keep its contents.
fn munmap_under_dma(c: &Context) -> Verdict {
    const PAGES: usize = 4;
    let device = c.bound()?;
    let at = PLACE;
    c.step("fills of a range that is mapped and unmapped");
    let mark = u64::from_le_bytes([0xdd; 8]);
    race(
        &device,
        |_| Descriptor::fill(at, (PAGES * 4096) as u64, mark),
        done_or_fault,
        |round| {
            let address = NonZeroUsize::new(usize::try_from(at)?);
            let size = NonZeroUsize::new(PAGES * 4096).expect("not zero");
            let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED_NOREPLACE | MapFlags::MAP_POPULATE;
            // SAFETY: with MAP_FIXED_NOREPLACE the mapping replaces nothing.
            let map = unsafe { mmap_anonymous(address, size, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags) };
            let map: NonNull<_> = map.during(format!("round {round}: map at {at:#x}"))?;
            std::thread::yield_now();
            // SAFETY: the mapping made above, which nothing in this process refers to; the device may.
            unsafe { munmap(map, PAGES * 4096) }?;
            // These pages are most likely the ones just given back. They lie elsewhere, where no descriptor points.
            let fresh = svadev_guest::Buffer::new(PAGES * 4096, svadev_guest::Backing::AnonymousShared)?;
            fresh.fill(0x11);
            for _ in 0..20 {
                check_bytes(
                    &fresh.bytes(0, PAGES * 4096),
                    &[0x11; PAGES * 4096],
                    &format!("round {round}: fresh memory after munmap returned"),
                )?;
            }
            Ok(())
        },
    )
}

/// The device writes memory whose right to be written comes and goes: while it is gone, nothing changes.
fn mprotect_under_dma(c: &Context) -> Verdict {
    const LENGTH: usize = 4 * 4096;
    let device = c.bound()?;
    let memory = small_pages(LENGTH)?;
    memory.fill(0);
    c.step("fills of memory that is made read-only and writable");
    race(
        &device,
        |n| Descriptor::fill(memory.address(), LENGTH as u64, n),
        |done| {
            done_or_fault(done)?;
            if done.code == Code::PageFault {
                check!(done.fault_is_write(), "expected a write fault, actual {done}");
                let at = done.fault_address().unwrap_or(0);
                check!((memory.address()..memory.at(LENGTH)).contains(&at), "fault outside the memory: {done}");
            }
            Ok(())
        },
        |round| {
            memory.protect(0, LENGTH, ProtFlags::PROT_READ)?;
            let first = memory.bytes(0, LENGTH);
            std::thread::yield_now();
            let second = memory.bytes(0, LENGTH);
            check_bytes(&second, &first, &format!("round {round}: memory while it is read-only"))?;
            memory.protect(0, LENGTH, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
            std::thread::yield_now();
            Ok(())
        },
    )?;
    c.step("the right is back: no fault for ever");
    check_success(&device.go(&Descriptor::fill(memory.address(), LENGTH as u64, 7))?, LENGTH as u64, "fill")
}

/// A mapping that moves takes its contents along; its old place is empty.
fn mremap_moves(c: &Context) -> Verdict {
    let device = c.bound()?;
    let length = 4 * 4096;
    let data = c.rng().bytes(length);
    for align in [4096, HUGE] {
        let (from, to) = (svadev_guest::Buffer::aligned(length, align)?, svadev_guest::Buffer::aligned(length, align)?);
        from.write(0, &data);
        let (old, new) = (from.address(), to.address());
        check_eq!(
            device.go(&Descriptor::crc32c(old, length as u64))?.crc32c(),
            Some(crc32c::crc32c(&data)),
            "CRC before the move"
        );
        let source = NonNull::new(from.as_ptr().cast()).expect("a mapping is not at 0");
        let target = NonNull::new(to.as_ptr().cast());
        // SAFETY: both ranges are whole mappings of ours; the source is given up below, the target's is replaced.
        unsafe { mremap(source, length, length, MRemapFlags::MREMAP_MAYMOVE | MRemapFlags::MREMAP_FIXED, target) }
            .during("mremap")?;
        // Nothing is mapped at its place any more, and must not be unmapped again.
        std::mem::forget(from);
        check_fault(&device.go(&Descriptor::crc32c(old, PAGE))?, old, 0, false, "read of the old place")?;
        check_fault(&device.go(&Descriptor::fill(old, PAGE, 0))?, old, 0, true, "write to the old place")?;
        let crc = device.go(&Descriptor::crc32c(new, length as u64))?;
        check_eq!(crc.crc32c(), Some(crc32c::crc32c(&data)), "CRC at the new place");
    }
    Ok(())
}

fn dontneed(c: &Context) -> Verdict {
    let device = c.bound()?;
    let (memory, huge) = (small_pages(8 * 4096)?, transparent_huge(HUGE)?);
    for memory in [&memory, &huge] {
        let length = 8 * 4096;
        for round in 0..5 {
            memory.write(0, &c.rng().bytes(length));
            check_success(&device.go(&Descriptor::crc32c(memory.address(), length as u64))?, length as u64, "CRC")?;
            memory.advise(0, length, MmapAdvise::MADV_DONTNEED)?;
            let crc = device.go(&Descriptor::crc32c(memory.address(), length as u64))?;
            check_eq!(crc.crc32c(), Some(crc32c::crc32c(&vec![0; length])), "round {round}: CRC after DONTNEED");
        }
    }
    Ok(())
}

/// Every byte that the device reads is the old value or zero, and after DONTNEED has returned nothing old comes back.
fn dontneed_under_dma(c: &Context) -> Verdict {
    const LENGTH: usize = 4 * 4096;
    let device = c.bound()?;
    let memory = small_pages(LENGTH)?;
    let check = c.bound()?;
    c.step("fills of memory that is dropped");
    race(
        &device,
        |_| Descriptor::fill(memory.address(), LENGTH as u64, u64::MAX),
        |done| check_success(done, LENGTH as u64, "fill of memory that is always there"),
        |round| {
            memory.advise(0, LENGTH, MmapAdvise::MADV_DONTNEED)?;
            let bytes = memory.bytes(0, LENGTH);
            check!(
                bytes.iter().all(|&b| b == 0 || b == 0xff),
                "round {round}: bytes that are neither zero nor the device's"
            );
            Ok(())
        },
    )?;
    memory.advise(0, LENGTH, MmapAdvise::MADV_DONTNEED)?;
    let crc = check.go(&Descriptor::crc32c(memory.address(), LENGTH as u64))?;
    check_eq!(crc.crc32c(), Some(crc32c::crc32c(&[0; LENGTH])), "CRC after the race and DONTNEED");
    Ok(())
}

/// MADV_FREE marks pages as clean; the device's write makes them dirty again (VT-d first-level A/D bits), so it must stay.
fn madv_free(c: &Context) -> Verdict {
    let device = c.bound()?;
    let length = 16 * 4096;
    let memory = small_pages(length)?;
    memory.fill(1);
    check_success(&device.go(&Descriptor::fill(memory.address(), length as u64, 1))?, length as u64, "fill")?;
    memory.advise(0, length, MmapAdvise::MADV_FREE)?;
    let mark = 0x0707_0707_0707_0707;
    check_success(&device.go(&Descriptor::fill(memory.address(), length as u64, mark))?, length as u64, "fill")?;
    // Reclaim: pages that are still clean are dropped here.
    memory.advise(0, length, MmapAdvise::MADV_PAGEOUT)?;
    check_bytes(&memory.bytes(0, length), &vec![7; length], "what the device wrote after MADV_FREE")
}

/// Pages that go to swap under the device come back with their contents, and with what the device wrote last.
fn pageout_under_dma(c: &Context) -> Verdict {
    let _swap = Swap::on()?;
    let before = Swap::written()?;
    let device = c.bound()?;
    let length = 8 * 4096;
    let memory = small_pages(length)?;
    let data = c.rng().bytes(length);
    memory.write(0, &data);
    let crc = crc32c::crc32c(&data);
    race(
        &device,
        |_| Descriptor::crc32c(memory.address(), length as u64),
        |done| {
            check_eq!(done.crc32c(), Some(crc), "CRC while pages are reclaimed: {done}");
            Ok(())
        },
        |_| Ok(memory.advise(0, length, MmapAdvise::MADV_PAGEOUT)?),
    )?;
    check_bytes(&memory.bytes(0, length), &data, "memory that was read")?;
    let written = Swap::written()? - before;
    check!(written >= 8, "only {written} pages went to swap under reads");
    c.step("the device writes while pages go to swap");
    let last = AtomicU64::new(0);
    race(
        &device,
        |n| Descriptor::fill(memory.address(), length as u64, n),
        |done| {
            check_success(done, length as u64, "fill while pages are reclaimed")?;
            last.store(done.cookie, Ordering::Relaxed);
            Ok(())
        },
        |_| Ok(memory.advise(0, length, MmapAdvise::MADV_PAGEOUT)?),
    )?;
    let expected = last.load(Ordering::Relaxed).to_le_bytes().repeat(length / 8);
    check_bytes(&memory.bytes(0, length), &expected, "memory that was written")?;
    c.step("what only the device wrote goes to swap and comes back");
    for value in 1..4u64 {
        let before = Swap::written()?;
        let fill = device.go(&Descriptor::fill(memory.address(), length as u64, value))?;
        check_success(&fill, length as u64, "fill")?;
        // A page that a worker has brought in can be reclaimed once it has left that processor's list of new pages.
        std::fs::write("/proc/sys/vm/drop_caches", "1").during("drop_caches")?;
        memory.advise(0, length, MmapAdvise::MADV_PAGEOUT)?;
        let written = Swap::written()? - before;
        check!(written >= 1, "none of 8 pages that the device wrote went to swap");
        let expected = value.to_le_bytes().repeat(length / 8);
        check_bytes(&memory.bytes(0, length), &expected, "memory that came back from swap")?;
    }
    Ok(())
}

/// MADV_COLLAPSE (Linux 6.1) gathers 512 small pages into a huge one, under reads and writes of the device.
fn collapse(c: &Context) -> Verdict {
    const MADV_COLLAPSE: i32 = 25;
    let device = c.bound()?;
    let memory = svadev_guest::Buffer::aligned(HUGE, HUGE)?;
    memory.advise(0, HUGE, MmapAdvise::MADV_NOHUGEPAGE)?;
    let data = c.rng().bytes(HUGE);
    memory.write(0, &data);
    memory.advise(0, HUGE, MmapAdvise::MADV_HUGEPAGE)?;
    let window = 64 * 4096;
    let crc = crc32c::crc32c(&data[window..2 * window]);
    let mut collapsed = false;
    race(
        &device,
        |_| Descriptor::crc32c(memory.at(window), window as u64),
        |done| {
            check_eq!(done.crc32c(), Some(crc), "CRC while pages are gathered: {done}");
            Ok(())
        },
        |_| {
            if !collapsed {
                // SAFETY: the range is a mapping of ours; the advice changes which pages hold it, not what they hold.
                let result = unsafe { libc::madvise(memory.as_ptr().cast(), HUGE, MADV_COLLAPSE) };
                nix::errno::Errno::result(result).during("MADV_COLLAPSE")?;
                collapsed = true;
            }
            std::thread::sleep(Duration::from_millis(1));
            Ok(())
        },
    )?;
    check!(crate::memory::smaps_kb(memory.address(), "AnonHugePages")? >= 2048, "the pages were not gathered");
    check_success(&device.go(&Descriptor::fill(memory.at(4096), 4096, 0))?, 4096, "fill in the huge page")?;
    let mut expected = data;
    expected[4096..8192].fill(0);
    check_bytes(&memory.bytes(0, HUGE), &expected, "memory afterwards")
}

/// After fork parent and child share pages until one writes: the device's write in the parent is a write too.
fn cow_after_fork(c: &Context) -> Verdict {
    let length = 4 * 4096;
    let memory = small_pages(length)?;
    let data = c.rng().bytes(length);
    memory.write(0, &data);
    let mut child = Peer::start(|line| {
        line.recv()?;
        check_bytes(&memory.bytes(0, length), &data, "the child's memory after the parent's device wrote")?;
        line.send(0)
    })?;
    let device = c.bound()?;
    let fill = device.go(&Descriptor::fill(memory.address(), length as u64, u64::MAX))?;
    check_success(&fill, length as u64, "fill of memory that a child shares")?;
    check_bytes(&memory.bytes(0, length), &vec![0xff; length], "the parent's memory")?;
    child.line.send(0)?;
    child.line.recv()?;
    child.join()
}

/// The device holds write translations from before the fork: the fork must take the right away.
fn cow_read_first(c: &Context) -> Verdict {
    let length = 4 * 4096;
    let device = c.bound()?;
    let memory = small_pages(length)?;
    c.step("the device writes before the fork, and holds translations for writing");
    let fill = |value| device.go(&Descriptor::fill(memory.address(), length as u64, value));
    check_success(&fill(0)?, length as u64, "fill before the fork")?;
    let mut child = Peer::start(|line| {
        line.recv()?;
        check_bytes(&memory.bytes(0, length), &vec![0; length], "the child's memory")?;
        line.send(0)
    })?;
    check_success(&fill(u64::MAX)?, length as u64, "fill after the fork")?;
    child.line.send(0)?;
    child.line.recv()?;
    check_bytes(&memory.bytes(0, length), &vec![0xff; length], "the parent's memory")?;
    child.join()
}
