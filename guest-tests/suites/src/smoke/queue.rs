//! Many at once, order, waiting, and the errors of the calls themselves.
#![allow(unsafe_code, reason = "hands broken structures to the driver")]
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::PollFlags;
use svadev_guest::abi::{self, BindArgs, SubmitArgs, WaitArgs};
use svadev_guest::{Descriptor, Device, SubmitFlags};

use super::opcodes::check_success;
use crate::harness::{Context, During, Expected, Test, Verdict, Work};
use crate::memory::{PAGE, check_bytes, small_pages};
use crate::{check, check_eq};

pub(super) const TESTS: &[Test] = &[
    Test::each("queue.full", full),
    Test::each("queue.fills_and_gives_eagain", nonblocking).needs_page_requests(),
    Test::each("queue.uncollected_limit", uncollected),
    Test::each("queue.a_parked_one_delays_nobody", parked),
    Test::each("queue.fence", fence),
    Test::each("queue.many_threads", threads),
    Test::each("queue.poll", poll),
    Test::each("queue.wait_timeout", wait_timeout),
    Test::each("queue.contexts_do_not_mix", contexts),
    Test::each("call.errors", call_errors),
    Test::each("call.broken_structures", broken_structures),
    Test::each("raw.pasid_never_bound", raw_unbound).expects(Expected::DmarFault),
    Test::each("raw.own_pasid", raw_own),
    Test::each("raw.another_contexts_pasid", raw_after_unbind).allows(Expected::DmarFault),
];

fn errno<T: std::fmt::Debug>(result: svadev_guest::Result<T>) -> Option<Errno> {
    result.err().and_then(|e| e.errno())
}

/// As many as one context may have in flight, all of them waiting for pages.
fn full(c: &Context) -> Verdict {
    let device = c.bound()?;
    let count = usize::try_from(device.query()?.max_in_flight)?;
    let (src, dst) = (small_pages(4096)?, small_pages(count * 4096)?);
    let data = c.rng().bytes(4096);
    src.write(0, &data);
    let copies: Vec<Descriptor> =
        (0..count).map(|i| Descriptor::copy(src.address(), dst.at(i * 4096), PAGE).with_cookie(i as u64)).collect();
    device.post_all(&copies)?;
    let done = device.collect(count, c.limit(Duration::from_secs(12)))?;
    let mut cookies: Vec<u64> = done.iter().map(|d| d.cookie).collect();
    cookies.sort_unstable();
    check_eq!(cookies, (0..count as u64).collect::<Vec<_>>(), "cookies, one completion for each");
    for completion in done {
        check_success(&completion, PAGE, "one of many")?;
    }
    for i in 0..count {
        check_bytes(&dst.bytes(i * 4096, 4096), &data, &format!("copy {i}"))?;
    }
    Ok(())
}

/// A descriptor that takes a while: many pages that nobody touched, one page request after another.
fn slow(c: &Context, pages: usize) -> Verdict<(svadev_guest::Buffer, Descriptor)> {
    let memory = small_pages(pages * 4096)?;
    c.step(format!("a fill of {pages} untouched pages is under way"));
    let fill = Descriptor::fill(memory.address(), memory.len() as u64, 0x55);
    Ok((memory, fill))
}

/// Without O_NONBLOCK a submission waits for room; with it, it says EAGAIN and takes nothing.
fn nonblocking(c: &Context) -> Verdict {
    let device = Device::open_nonblocking(c.path())?;
    device.bind()?;
    let limit = usize::try_from(device.query()?.max_in_flight)?;
    let (_memory, slow) = slow(c, 400)?;
    // Behind a fence nothing completes before the slow one does.
    let mut batch = vec![slow, Descriptor::nop().fenced()];
    batch.resize(2 * limit, Descriptor::nop());
    let mut taken = device.post(&batch)?;
    check!(taken <= limit, "expected at most {limit} taken, actual {taken}");
    let refused = loop {
        match device.post(&batch[taken..]) {
            Ok(more) => taken += more,
            Err(e) => break e,
        }
        check!(taken < batch.len(), "{taken} descriptors taken with a limit of {limit} and nothing collected");
    };
    check_eq!(refused.errno(), Some(Errno::EAGAIN), "submission without room");
    check!(taken >= limit, "expected {limit} to be taken before EAGAIN, actual {taken}");
    c.step("room comes: poll says so");
    let ready = device.poll(PollFlags::POLLOUT, Some(c.limit(Duration::from_secs(10))))?;
    check!(ready.contains(PollFlags::POLLOUT), "expected POLLOUT once work completes, actual {ready:?}");
    device.collect(taken, c.limit(Duration::from_secs(10)))?;
    check_eq!(device.query()?.in_flight, 0, "in flight after all was collected");
    Ok(())
}

/// Whoever never collects is stopped, by an error that says so.
fn uncollected(c: &Context) -> Verdict {
    let device = c.bound()?;
    let limit = usize::try_from(device.query()?.max_uncollected)?;
    let batch = vec![Descriptor::nop(); 256];
    let mut taken = 0;
    let refused = loop {
        match device.post(&batch) {
            Ok(more) => taken += more,
            Err(e) => break e,
        }
        check!(taken <= limit, "{taken} descriptors taken with a limit of {limit} and nothing collected");
    };
    check_eq!(refused.errno(), Some(Errno::ENOBUFS), "submission with {taken} uncollected");
    check_eq!(taken, limit, "taken before ENOBUFS");
    device.collect(limit, c.limit(Duration::from_secs(10)))?;
    check_eq!(device.post(&batch[..1])?, 1, "taken after collecting");
    device.collect(1, c.limit(Duration::from_secs(5))).map(drop)
}

/// One that waits for hundreds of pages is overtaken by one that needs none.
fn parked(c: &Context) -> Verdict {
    let device = c.bound()?;
    let (memory, slow) = slow(c, 300)?;
    let quick = small_pages(2 * 4096)?;
    quick.fill(1);
    let batch = [slow.with_cookie(1), Descriptor::copy(quick.address(), quick.at(4096), PAGE).with_cookie(2)];
    device.post_all(&batch)?;
    let done = device.collect(2, c.limit(Duration::from_secs(10)))?;
    let order: Vec<u64> = done.iter().map(|d| d.cookie).collect();
    check_eq!(
        order,
        [2, 1],
        "order of completions: a copy in memory that is there (2), a fill of 300 missing pages (1)"
    );
    check_success(&done[0], PAGE, "copy")?;
    check_success(&done[1], memory.len() as u64, "fill")
}

/// FENCE holds back what comes after: the copy reads what the fill before it wrote, though that had to wait for pages.
fn fence(c: &Context) -> Verdict {
    let device = c.bound()?;
    let (memory, slow) = slow(c, 32)?;
    let out = small_pages(memory.len())?;
    out.fill(0);
    let copy = Descriptor::copy(memory.address(), out.address(), memory.len() as u64).fenced();
    device.post_all(&[slow.with_cookie(1), copy.with_cookie(2), Descriptor::nop().fenced().with_cookie(3)])?;
    let done = device.collect(3, c.limit(Duration::from_secs(10)))?;
    let order: Vec<u64> = done.iter().map(|d| d.cookie).collect();
    check_eq!(order, [1, 2, 3], "order of completions across fences");
    let expected: Vec<u8> = 0x55_u64.to_le_bytes().repeat(memory.len() / 8);
    check_bytes(&out.bytes(0, out.len()), &expected, "copy behind a fence")
}

/// Threads of one process on one context, each with its own memory.
fn threads(c: &Context) -> Verdict {
    const THREADS: usize = 4;
    const COPIES: usize = 20;
    let device = c.bound()?;
    let memory: Vec<_> = (0..THREADS).map(|_| small_pages(2 * 4096)).collect::<Verdict<_>>()?;
    std::thread::scope(|scope| {
        let work = |t: usize| {
            let (device, memory) = (&device, &memory[t]);
            move || -> svadev_guest::Result<()> {
                memory.write(0, &[u8::try_from(t).unwrap_or(0) + 1; 4096]);
                for i in 0..COPIES {
                    let cookie = (t * COPIES + i) as u64;
                    device
                        .post_all(&[Descriptor::copy(memory.address(), memory.at(4096), PAGE).with_cookie(cookie)])?;
                }
                Ok(())
            }
        };
        let running: Vec<_> = (0..THREADS).map(|t| scope.spawn(work(t))).collect();
        for thread in running {
            thread.join().expect("a submitting thread does not panic").during("submit from a thread")?;
        }
        Verdict::Ok(())
    })?;
    let mut cookies: Vec<u64> =
        device.collect(THREADS * COPIES, c.limit(Duration::from_secs(10)))?.iter().map(|d| d.cookie).collect();
    cookies.sort_unstable();
    check_eq!(cookies, (0..(THREADS * COPIES) as u64).collect::<Vec<_>>(), "cookies, one completion for each");
    for (t, memory) in memory.iter().enumerate() {
        check_bytes(&memory.bytes(4096, 4096), &[u8::try_from(t)? + 1; 4096], &format!("thread {t}'s copy"))?;
    }
    Ok(())
}

fn poll(c: &Context) -> Verdict {
    let device = c.bound()?;
    let both = PollFlags::POLLIN | PollFlags::POLLOUT;
    check_eq!(device.poll(both, Some(Duration::ZERO))?, PollFlags::POLLOUT, "idle context");
    let (_memory, slow) = slow(c, 50)?;
    device.post_all(&[slow])?;
    let start = Instant::now();
    let ready = device.poll(PollFlags::POLLIN, Some(c.limit(Duration::from_secs(10))))?;
    check_eq!(ready, PollFlags::POLLIN, "work that completes, after {:?}", start.elapsed());
    check_eq!(device.query()?.uncollected, 1, "completions to collect");
    check_eq!(device.collect(1, Duration::ZERO)?.len(), 1, "completions collected without waiting");
    check_eq!(device.poll(both, Some(Duration::ZERO))?, PollFlags::POLLOUT, "all collected");
    Ok(())
}

fn wait_timeout(c: &Context) -> Verdict {
    let device = c.bound()?;
    let start = Instant::now();
    // Nothing in flight: there is nothing to wait for.
    check_eq!(device.wait(1, 1, Some(Duration::from_secs(5)))?.len(), 0, "completions of nothing");
    check!(start.elapsed() < Duration::from_secs(4), "waited {:?} for nothing", start.elapsed());
    let (_memory, slow) = slow(c, 400)?;
    device.post_all(&[slow])?;
    let start = Instant::now();
    let early = device.wait(1, 1, Some(Duration::from_millis(5)))?.len();
    let waited = start.elapsed();
    if early == 0 {
        check!(waited >= Duration::from_millis(5), "a wait of 5 ms ended after {waited:?} with nothing");
        device.collect(1, c.limit(Duration::from_secs(10)))?;
    }
    Ok(())
}

/// Two contexts of one process: each collects its own.
fn contexts(c: &Context) -> Verdict {
    let (a, b) = (c.bound()?, c.bound()?);
    check_eq!(a.query()?.pasid, b.query()?.pasid, "PASID of two contexts of one process");
    a.post_all(&[Descriptor::nop().with_cookie(1), Descriptor::nop().with_cookie(2)])?;
    b.post_all(&[Descriptor::nop().with_cookie(3)])?;
    let cookies = |device: &Device, n| -> Verdict<Vec<u64>> {
        let mut all: Vec<u64> = device.collect(n, c.limit(Duration::from_secs(5)))?.iter().map(|d| d.cookie).collect();
        all.sort_unstable();
        Ok(all)
    };
    check_eq!(cookies(&b, 1)?, [3], "second context's completions");
    check_eq!(cookies(&a, 2)?, [1, 2], "first context's completions");
    c.step("unbinding one leaves the other's binding");
    a.unbind()?;
    check_success(&b.go(&Descriptor::nop())?, 0, "NOP on the context that is still bound")
}

fn call_errors(c: &Context) -> Verdict {
    let device = c.open()?;
    let nop = [Descriptor::nop()];
    check_eq!(errno(device.post(&nop)), Some(Errno::EINVAL), "submit before bind");
    check_eq!(errno(device.unbind()), Some(Errno::EINVAL), "unbind before bind");
    device.bind()?;
    check_eq!(errno(device.bind()), Some(Errno::EBUSY), "second bind");
    check_eq!(errno(device.post(&[Descriptor::nop().with_pasid(Some(1))])), Some(Errno::EINVAL), "PASID without RAW");
    check_eq!(device.post(&[])?, 0, "taken of none");
    check_success(&device.go(&nop[0])?, 0, "NOP after all these errors")?;
    device.unbind()?;
    check_eq!(errno(device.unbind()), Some(Errno::EINVAL), "second unbind");
    check_eq!(errno(device.post(&nop)), Some(Errno::EINVAL), "submit after unbind");
    c.step("binding again");
    device.bind()?;
    check_success(&device.go(&nop[0])?, 0, "NOP after binding again")
}

fn broken_structures(c: &Context) -> Verdict {
    let device = c.bound()?;
    let fd = device.as_raw_fd();
    let size = |n: usize| u32::try_from(n).unwrap_or(0);
    let mut short = BindArgs { argsz: 4, ..Default::default() };
    // SAFETY: for this call and those below, the kernel reads and writes at most the structure's size at its address,
    // or fails with EFAULT at an address where nothing is mapped.
    let result = unsafe { abi::bind(fd, &raw mut short) };
    check_eq!(result, Err(Errno::EINVAL), "argsz below the structure's");
    let mut flagged = BindArgs { argsz: size(size_of::<BindArgs>()), flags: 1 << 31, ..Default::default() };
    // SAFETY: as above.
    let result = unsafe { abi::bind(fd, &raw mut flagged) };
    check_eq!(result, Err(Errno::EINVAL), "unknown flag of bind");
    let unmapped = usize::try_from(small_pages(4096)?.unmap())?;
    // SAFETY: as above.
    let result = unsafe { abi::wait(fd, std::ptr::with_exposed_provenance_mut::<WaitArgs>(unmapped)) };
    check_eq!(result, Err(Errno::EFAULT), "structure in unmapped memory");
    let mut submit =
        SubmitArgs { argsz: size(size_of::<SubmitArgs>()), descs: unmapped as u64, count: 1, ..Default::default() };
    // SAFETY: as above.
    let result = unsafe { abi::submit(fd, &raw mut submit) };
    check_eq!(result, Err(Errno::EFAULT), "descriptors in unmapped memory");
    let result = device.post_with(&[Descriptor::nop()], SubmitFlags::from_bits(1 << 7));
    check_eq!(errno(result), Some(Errno::EINVAL), "unknown flag of submit");
    c.step("a request that does not exist");
    let request = nix::request_code_none!(abi::IOC_MAGIC, 0x7f);
    // SAFETY: an unknown request, which the driver refuses without looking at the argument.
    let result = Errno::result(unsafe { libc::ioctl(fd, request, 0) });
    check_eq!(result, Err(Errno::ENOTTY), "unknown request");
    c.step("completions that cannot be stored stay");
    device.post_all(&[Descriptor::nop().with_cookie(77)])?;
    device.poll(PollFlags::POLLIN, Some(c.limit(Duration::from_secs(5))))?;
    let mut wait = WaitArgs {
        argsz: size(size_of::<WaitArgs>()),
        completions: unmapped as u64,
        capacity: 1,
        min: 1,
        ..Default::default()
    };
    // SAFETY: as above.
    let result = unsafe { abi::wait(fd, &raw mut wait) };
    check_eq!(result, Err(Errno::EFAULT), "completions into unmapped memory");
    check_eq!(device.collect(1, Duration::ZERO)?[0].cookie, 77, "cookie of the completion that stayed");
    Ok(())
}

/// A PASID that nothing is bound to: blocked, recorded as an IOMMU fault, and nobody else is hurt.
fn raw_unbound(c: &Context) -> Verdict {
    let device = c.bound()?;
    let memory = small_pages(2 * 4096)?;
    memory.fill(0x5a);
    let never = 0x7_1234;
    check!(device.query()?.pasid != Some(never), "PASID {never:#x} is bound after all");
    let mut log = crate::harness::kernel_log::Follower::from_now()?;
    let copy = Descriptor::copy(memory.address(), memory.at(4096), PAGE).with_pasid(Some(never));
    let done = device.go_raw(&copy)?;
    check_eq!(done.code, svadev_guest::Code::TranslationBlocked, "status of {done}");
    check_eq!(done.bytes_done, 0, "bytes done");
    check_bytes(&memory.bytes(0, 8192), &[0x5a; 8192], "memory")?;
    c.step("waiting for the fault in the kernel log");
    let line = log.wait_for(c.limit(Duration::from_secs(5)), |l| l.contains("DMAR:") && l.contains("fault reason"))?;
    check!(line.is_some(), "expected a recorded IOMMU fault in the kernel log, actual none within 5 s");
    check_success(&device.go(&Descriptor::copy(memory.address(), memory.at(4096), PAGE))?, PAGE, "own work")?;
    c.still_serves()
}

/// The test hook with the context's own PASID does what the driver would do itself.
fn raw_own(c: &Context) -> Verdict {
    let device = c.bound()?;
    let memory = small_pages(2 * 4096)?;
    memory.write(0, &[0x5a; 4096]);
    let pasid = device.query()?.pasid;
    let copy = Descriptor::copy(memory.address(), memory.at(4096), PAGE).with_pasid(pasid).with_cookie(9);
    let done = device.go_raw(&copy)?;
    check_success(&done, PAGE, "copy with the context's own PASID")?;
    check_eq!(done.cookie, 9, "cookie");
    check_bytes(&memory.bytes(4096, 4096), &[0x5a; 4096], "copy")
}

/// After unbind the PASID leads nowhere, even for a descriptor that names it.
fn raw_after_unbind(c: &Context) -> Verdict {
    let device = c.open()?;
    let pasid = device.bind()?;
    let memory = small_pages(2 * 4096)?;
    memory.fill(0x5a);
    let copy = Descriptor::copy(memory.address(), memory.at(4096), PAGE).with_pasid(Some(pasid));
    check_success(&device.go_raw(&copy)?, PAGE, "while bound")?;
    device.unbind()?;
    memory.write(4096, &[1; 4096]);
    let done = device.go_raw(&copy)?;
    check_eq!(done.code, svadev_guest::Code::TranslationBlocked, "after unbind: {done}");
    check_bytes(&memory.bytes(4096, 4096), &[1; 4096], "memory after unbind")
}
