//! Every opcode under both fault policies, and what each one promises about its result.
use std::time::Duration;

use svadev_guest::{Buffer, Code, Completion, Descriptor, opcode};

use crate::harness::{Context, Test, Verdict, Work};
use crate::memory::{PAGE, check_bytes, is_present, present_pages, small_pages};
use crate::{check, check_eq};

pub(super) const TESTS: &[Test] = &[
    Test::each("query.says_what_the_device_is", query),
    Test::each("opcode.nop", nop),
    Test::each("opcode.drain", drain),
    Test::each("opcode.copy.wait_on_untouched", copy_untouched).needs_page_requests(),
    Test::each("opcode.fill.wait_on_untouched", fill_untouched),
    Test::each("opcode.compare.wait_on_untouched", compare_untouched),
    Test::each("opcode.crc32c.wait_on_untouched", crc_untouched),
    Test::each("opcode.copy.stop_on_untouched", copy_stops).needs_page_requests(),
    Test::each("opcode.fill.stop_on_untouched", fill_stops).needs_page_requests(),
    Test::each("opcode.compare.stop_on_untouched", compare_stops).needs_page_requests(),
    Test::each("opcode.crc32c.stop_on_untouched", crc_stops).needs_page_requests(),
    Test::each("opcode.prefetch.makes_pages_present", prefetch).needs_page_requests(),
    Test::each("opcode.drop.changes_no_byte", drop_keeps),
    Test::each("opcode.stop_policy_on_touched", stop_policy_touched),
    Test::each("opcode.fill.pattern_phase", fill_phase),
    Test::each("opcode.compare.mismatch_offset", mismatch_offset),
    Test::each("opcode.crc32c.against_crate", crc_against_crate),
    Test::each("opcode.crc32c.continues", crc_continues),
];

/// Pages of the memory that these tests use.
const PAGES: usize = 4;
const LENGTH: usize = PAGES * 4096;

/// Check a completion that should be all well.
///
/// # Errors
/// It is not.
pub(super) fn check_success(completion: &Completion, length: u64, what: &str) -> Verdict {
    check_eq!(completion.code, Code::Success, "{what}: status of {completion}");
    check_eq!(completion.bytes_done, length, "{what}: bytes done");
    Ok(())
}

/// Check a completion that should be a page fault at one address, with so many bytes done before it.
///
/// # Errors
/// It is not.
pub(super) fn check_fault(done: &Completion, address: u64, bytes: u64, write: bool, what: &str) -> Verdict {
    check_eq!(done.code, Code::PageFault, "{what}: status of {done}");
    check!(
        done.fault_address() == Some(address),
        "{what}: expected a fault at {address:#x}, actual {done} (result {:#x})",
        done.result
    );
    check_eq!(done.fault_is_write(), write, "{what}: fault was a write");
    check_eq!(done.bytes_done, bytes, "{what}: bytes done before the fault");
    Ok(())
}

fn query(c: &Context) -> Verdict {
    let device = c.open()?;
    let q = device.query()?;
    check_eq!(q.uapi_version, svadev_guest::abi::UAPI_VERSION, "interface version");
    check_eq!(q.device_version.0, svadev_spec::device::ABI_MAJOR, "major version of the device's ABI");
    check_eq!(q.opcodes, opcode::IMPLEMENTED, "opcodes");
    check_eq!(q.max_length, svadev_spec::device::MAX_LENGTH, "longest operand");
    check_eq!(q.max_scatter, svadev_spec::device::MAX_SCATTER_ENTRIES, "longest list");
    check!(q.queues >= 1 && q.engines >= 1, "expected a queue and an engine, actual {q:?}");
    check_eq!(q.pasid, None, "PASID before bind");
    let pasid = device.bind()?;
    check!(pasid != 0, "expected a PASID that is not 0, which is for requests without PASID");
    check_eq!(device.query()?.pasid, Some(pasid), "PASID after bind");
    device.unbind()?;
    check_eq!(device.query()?.pasid, None, "PASID after unbind");
    Ok(())
}

fn nop(c: &Context) -> Verdict {
    let device = c.bound()?;
    let done = device.go(&Descriptor::nop().with_cookie(0xdead_beef_0000_0001))?;
    check_success(&done, 0, "NOP")?;
    check_eq!(done.cookie, 0xdead_beef_0000_0001, "cookie");
    Ok(())
}

/// DRAIN completes after everything before it: after a copy that waits for 16 pages.
fn drain(c: &Context) -> Verdict {
    let device = c.bound()?;
    let length = 16 * 4096;
    let (src, dst) = (small_pages(length)?, small_pages(length)?);
    let copy = Descriptor::copy(src.address(), dst.address(), length as u64).with_cookie(1);
    device.post_all(&[copy, Descriptor::drain().with_cookie(2)])?;
    let done = device.collect(2, c.limit(Duration::from_secs(10)))?;
    let order: Vec<u64> = done.iter().map(|d| d.cookie).collect();
    check_eq!(order, [1, 2], "order of completions, DRAIN (2) behind a copy (1)");
    check_success(&done[0], length as u64, "copy")?;
    check_success(&done[1], 0, "DRAIN")
}

/// A source of random bytes, touched, and a destination that nobody touched.
fn source_and_untouched(c: &Context) -> Verdict<(Vec<u8>, Buffer, Buffer)> {
    let data = c.rng().bytes(LENGTH);
    let src = small_pages(LENGTH)?;
    src.write(0, &data);
    let dst = small_pages(LENGTH)?;
    check!(!is_present(dst.address())?, "memory that nobody touched is present");
    Ok((data, src, dst))
}

fn copy_untouched(c: &Context) -> Verdict {
    let device = c.bound()?;
    let (data, src, dst) = source_and_untouched(c)?;
    let done = device.go(&Descriptor::copy(src.address(), dst.address(), LENGTH as u64))?;
    check_success(&done, LENGTH as u64, "copy into untouched memory")?;
    check!(is_present(dst.address())?, "the device wrote a page that is not present");
    check_bytes(&dst.bytes(0, LENGTH), &data, "destination")?;
    check_bytes(&src.bytes(0, LENGTH), &data, "source afterwards")?;
    c.step("copying from untouched memory: it reads as zeros");
    let zeros = small_pages(LENGTH)?;
    let done = device.go(&Descriptor::copy(zeros.address(), dst.address(), LENGTH as u64))?;
    check_success(&done, LENGTH as u64, "copy from untouched memory")?;
    check_bytes(&dst.bytes(0, LENGTH), &[0; LENGTH], "destination")
}

fn fill_untouched(c: &Context) -> Verdict {
    let device = c.bound()?;
    let dst = small_pages(LENGTH)?;
    let pattern = c.rng().next_u64();
    let done = device.go(&Descriptor::fill(dst.address(), LENGTH as u64, pattern))?;
    check_success(&done, LENGTH as u64, "fill of untouched memory")?;
    check_bytes(&dst.bytes(0, LENGTH), &pattern.to_le_bytes().repeat(LENGTH / 8), "destination")
}

fn compare_untouched(c: &Context) -> Verdict {
    let device = c.bound()?;
    let (left, right) = (small_pages(LENGTH)?, small_pages(LENGTH)?);
    let done = device.go(&Descriptor::compare(left.address(), right.address(), LENGTH as u64))?;
    check_success(&done, LENGTH as u64, "zeros compared with zeros")
}

fn crc_untouched(c: &Context) -> Verdict {
    let device = c.bound()?;
    let src = small_pages(LENGTH)?;
    let done = device.go(&Descriptor::crc32c(src.address(), LENGTH as u64))?;
    check_success(&done, LENGTH as u64, "CRC of untouched memory")?;
    check_eq!(done.crc32c(), Some(crc32c::crc32c(&[0; LENGTH])), "CRC of zeros");
    Ok(())
}

/// With STOP_ON_FAULT: the first two pages of one operand are there, the third is not.
fn stops(c: &Context, write: bool, make: impl Fn(u64, u64) -> Descriptor) -> Verdict {
    let device = c.bound()?;
    let (whole, broken) = (small_pages(LENGTH)?, small_pages(LENGTH)?);
    whole.fill(0x11);
    broken.write(0, &[0x11; 2 * 4096]);
    broken.write(3 * 4096, &[0x11; 4096]);
    let done = device.go(&make(whole.address(), broken.address()).stop_on_fault())?;
    check_fault(&done, broken.at(2 * 4096), 2 * PAGE, write, "third page untouched")?;
    check!(!is_present(broken.at(2 * 4096))?, "the page was asked for although the policy is to stop");
    c.step("the same with the policy to wait");
    let done = device.go(&make(whole.address(), broken.address()))?;
    check!(
        matches!(done.code, Code::Success | Code::Mismatch),
        "with the policy to wait: expected the work to be done, actual {done}"
    );
    check!(is_present(broken.at(2 * 4096))?, "the page is not there after the device used it");
    Ok(())
}

fn copy_stops(c: &Context) -> Verdict {
    stops(c, true, |whole, broken| Descriptor::copy(whole, broken, LENGTH as u64))?;
    stops(c, false, |whole, broken| Descriptor::copy(broken, whole, LENGTH as u64))
}

fn fill_stops(c: &Context) -> Verdict {
    stops(c, true, |_, broken| Descriptor::fill(broken, LENGTH as u64, 1))
}

fn compare_stops(c: &Context) -> Verdict {
    stops(c, false, |whole, broken| Descriptor::compare(whole, broken, LENGTH as u64))?;
    stops(c, false, |whole, broken| Descriptor::compare(broken, whole, LENGTH as u64))
}

fn crc_stops(c: &Context) -> Verdict {
    stops(c, false, |_, broken| Descriptor::crc32c(broken, LENGTH as u64))
}

/// Pages that were prefetched for writing are there, written by nobody, and a write that asks for none succeeds.
fn prefetch(c: &Context) -> Verdict {
    let device = c.bound()?;
    let memory = small_pages(LENGTH)?;
    let length = LENGTH as u64;
    let write = Descriptor::fill(memory.address(), length, 0x1111_1111_1111_1111).stop_on_fault();
    check_fault(&device.go(&write)?, memory.address(), 0, true, "fill of untouched memory")?;
    let ahead = Descriptor::prefetch(memory.address(), length, true);
    check_fault(&device.go(&ahead.stop_on_fault())?, memory.address(), 0, true, "prefetch that may not ask")?;
    check_success(&device.go(&ahead)?, length, "prefetch")?;
    check_eq!(present_pages(&memory)?, PAGES, "pages present after the prefetch");
    check_bytes(&memory.bytes(0, LENGTH), &[0; LENGTH], "memory that was only prefetched")?;
    check_success(&device.go(&write)?, length, "fill of prefetched memory")?;
    check_bytes(&memory.bytes(0, LENGTH), &[0x11; LENGTH], "memory that was filled")?;
    let gone = memory.address();
    drop(memory);
    check_fault(&device.go(&Descriptor::prefetch(gone, PAGE, false))?, gone, 0, false, "prefetch of unmapped memory")
}

/// The device forgets what it knows of a range, and finds it again.
fn drop_keeps(c: &Context) -> Verdict {
    let device = c.bound()?;
    let memory = small_pages(LENGTH)?;
    let bytes = c.rng().bytes(LENGTH);
    memory.write(0, &bytes);
    let length = LENGTH as u64;
    for _ in 0..3 {
        let crc = device.go(&Descriptor::crc32c(memory.address(), length))?;
        check_eq!(crc.crc32c(), Some(crc32c::crc32c(&bytes)), "CRC");
        check_success(&device.go(&Descriptor::drop_translations(memory.address(), length))?, length, "drop")?;
    }
    check_bytes(&memory.bytes(0, LENGTH), &bytes, "memory")?;
    let unmapped = memory.address();
    drop(memory);
    check_success(&device.go(&Descriptor::drop_translations(unmapped, PAGE))?, PAGE, "drop of unmapped memory")
}

/// Memory that is there needs no page: the policy to stop changes nothing.
fn stop_policy_touched(c: &Context) -> Verdict {
    let device = c.bound()?;
    let (src, dst) = (small_pages(LENGTH)?, small_pages(LENGTH)?);
    src.write(0, &c.rng().bytes(LENGTH));
    dst.fill(0);
    let length = LENGTH as u64;
    let copied = device.go(&Descriptor::copy(src.address(), dst.address(), length).stop_on_fault())?;
    check_success(&copied, length, "copy")?;
    let compared = device.go(&Descriptor::compare(src.address(), dst.address(), length).stop_on_fault())?;
    check_success(&compared, length, "compare")?;
    let crc = device.go(&Descriptor::crc32c(dst.address(), length).stop_on_fault())?;
    check_eq!(crc.crc32c(), Some(crc32c::crc32c(&src.bytes(0, LENGTH))), "CRC");
    let filled = device.go(&Descriptor::fill(dst.address(), length, 0x0102_0304_0506_0708).stop_on_fault())?;
    check_success(&filled, length, "fill")?;
    check_eq!(dst.get(0), 8, "first byte of the pattern is its lowest");
    Ok(())
}

/// The pattern starts with its lowest byte at the first byte of the destination, wherever that is.
fn fill_phase(c: &Context) -> Verdict {
    let device = c.bound()?;
    let dst = small_pages(2 * 4096)?;
    let pattern = 0x8877_6655_4433_2211_u64.to_le_bytes();
    for start in [0, 1, 3, 7, 4090, 4095] {
        for length in [1, 2, 7, 8, 9, 15, 16, 100] {
            c.step(format!("fill of {length} bytes at {start}"));
            dst.fill(0xcc);
            let fill = Descriptor::fill(dst.at(start), length as u64, u64::from_le_bytes(pattern));
            check_success(&device.go(&fill)?, length as u64, "fill")?;
            let mut expected = vec![0xcc; 2 * 4096];
            expected[start..start + length].iter_mut().zip(pattern.iter().cycle()).for_each(|(to, from)| *to = *from);
            check_bytes(&dst.bytes(0, 2 * 4096), &expected, &format!("fill of {length} bytes at {start}"))?;
        }
    }
    Ok(())
}

fn mismatch_offset(c: &Context) -> Verdict {
    let device = c.bound()?;
    let (left, right) = (small_pages(LENGTH)?, small_pages(LENGTH)?);
    let data = c.rng().bytes(LENGTH);
    left.write(0, &data);
    right.write(0, &data);
    let length = LENGTH as u64;
    check_success(&device.go(&Descriptor::compare(left.address(), right.address(), length))?, length, "equal")?;
    for at in [0, 1, 7, 8, 63, 64, 4095, 4096, 8191, LENGTH - 1] {
        c.step(format!("difference at {at}"));
        right.write(at, &[!data[at]]);
        // A later difference must not hide it.
        right.write(LENGTH - 1, &[!data[LENGTH - 1]]);
        let done = device.go(&Descriptor::compare(left.address(), right.address(), length))?;
        check_eq!(done.mismatch_offset(), Some(at as u64), "offset of the first difference, {done}");
        check_eq!(done.bytes_done, at as u64, "bytes found equal");
        right.write(0, &data);
    }
    c.step("difference just outside");
    right.write(100, &[!data[100]]);
    check_success(&device.go(&Descriptor::compare(left.address(), right.address(), 100))?, 100, "before it")?;
    check_success(&device.go(&Descriptor::compare(left.at(101), right.at(101), 100))?, 100, "after it")
}

fn crc_against_crate(c: &Context) -> Verdict {
    let device = c.bound()?;
    let src = small_pages(LENGTH)?;
    // RFC 3720, appendix B.4: 32 bytes of zeros, ones, and counting up.
    let counting: Vec<u8> = (0..32).collect();
    for (bytes, crc) in [(vec![0; 32], 0x8a91_36aa), (vec![0xff; 32], 0x62a8_ab43), (counting, 0x46dd_794e)] {
        src.write(0, &bytes);
        let done = device.go(&Descriptor::crc32c(src.address(), 32))?;
        check_eq!(done.crc32c(), Some(crc), "CRC of the RFC's example");
    }
    let mut rng = c.rng();
    let data = rng.bytes(LENGTH);
    src.write(0, &data);
    for _ in 0..40 {
        let start = rng.below(LENGTH);
        let length = 1 + rng.below(LENGTH - start);
        c.step(format!("CRC of {length} bytes at {start}"));
        let done = device.go(&Descriptor::crc32c(src.at(start), length as u64))?;
        let expected = crc32c::crc32c(&data[start..start + length]);
        check_eq!(done.crc32c(), Some(expected), "CRC of {length} bytes at {start}");
    }
    Ok(())
}

/// A CRC in two parts is the CRC of the whole.
fn crc_continues(c: &Context) -> Verdict {
    let device = c.bound()?;
    let src = small_pages(LENGTH)?;
    let data = c.rng().bytes(LENGTH);
    src.write(0, &data);
    for cut in [1, 8, 4096, 5000, LENGTH - 1] {
        let first = device.go(&Descriptor::crc32c(src.address(), cut as u64))?;
        let rest = Descriptor::crc32c(src.at(cut), (LENGTH - cut) as u64).with_operand(first.result);
        check_eq!(device.go(&rest)?.crc32c(), Some(crc32c::crc32c(&data)), "CRC cut at {cut}");
    }
    Ok(())
}
