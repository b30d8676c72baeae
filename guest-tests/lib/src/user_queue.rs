//! Queues that the program drives itself: submission is a few stores to its own memory and to a doorbell page.
#![allow(unsafe_code, reason = "maps device pages, and accesses words of them and of the rings as atomics")]

use std::cell::Cell;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::mman::{self, MapFlags, ProtFlags};
use svadev_spec::device::{self, DescriptorFlags, Priority, doorbell};
use svadev_spec::doorbell::{must_wake, publish};
use zerocopy::{FromZeros, IntoBytes};

use crate::abi::{self, CreateQueueArgs, DestroyQueueArgs, QueryQueueArgs};
use crate::device::size_of_u32;
use crate::{Buffer, Completion, Descriptor, Device, Error, PAGE_SIZE, Result};

/// How long [`UserQueue::wait`] looks at the ring before it sleeps: above the time of a small copy, below that of a sleep.
const SPIN: Duration = Duration::from_micros(20);
const DESCRIPTOR: usize = size_of::<device::Descriptor>();
const COMPLETION: usize = size_of::<device::Completion>();
const SEQ: usize = std::mem::offset_of!(device::Completion, seq);

/// How a [`UserQueue`] is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserQueueOptions {
    /// Log2 of the submission ring's entries.
    pub sq_log2: u32,
    /// Log2 of the completion ring's entries.
    pub cq_log2: u32,
    /// Completions raise an interrupt, so that [`UserQueue::wait`] can sleep.
    pub interrupts: bool,
    /// Shares of its engine, while other queues have work, too. Above [`Priority::Normal`] it needs `CAP_SYS_NICE`.
    pub priority: Priority,
    /// Least time between two interrupts of the queue, µs; 0 for none. What completes meanwhile waits for the next.
    pub interrupt_interval_us: u16,
    /// As many completions do not wait any longer for an interrupt; 0 for any number.
    pub interrupt_count: u16,
}

impl UserQueueOptions {
    /// 64 descriptors, 128 completions, polled.
    pub const POLLED: Self = Self {
        sq_log2: 6,
        cq_log2: 7,
        interrupts: false,
        priority: Priority::Normal,
        interrupt_interval_us: 0,
        interrupt_count: 0,
    };
}

impl Default for UserQueueOptions {
    /// [`POLLED`](Self::POLLED).
    fn default() -> Self {
        Self::POLLED
    }
}

/// Whether a queue works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueState {
    /// It does.
    Running,
    /// It stopped by itself or by an abort of its PASID.
    Halted,
    /// The function was reset, restarted or removed: an access to the queue's pages raises `SIGBUS`.
    Lost,
}

/// What the driver says about a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueQuery {
    /// Whether it works.
    pub state: QueueState,
    /// One of [`svadev_spec::device::queue_error`].
    pub error: u8,
    /// Where the ring could not be accessed, for the two errors that have an address.
    pub fault_address: u64,
}

/// One mapped page of the device.
#[derive(Debug)]
struct Page(NonNull<u8>);

impl Page {
    fn map(device: &Device, offset: u64) -> Result<Self> {
        let length = NonZeroUsize::new(PAGE_SIZE).expect("not zero");
        let offset = i64::try_from(offset).map_err(|_| Error::System { operation: "mmap", errno: Errno::EINVAL })?;
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: without MAP_FIXED the kernel picks a range that nothing uses.
        let page = unsafe { mman::mmap(None, length, prot, MapFlags::MAP_SHARED, device, offset) };
        page.map_err(Error::system("mmap")).map(|page| Self(page.cast()))
    }

    /// The word at an offset of the doorbell layout.
    fn word(&self, offset: u64) -> &AtomicU32 {
        let offset = usize::try_from(offset).expect("an offset in a page");
        assert!(offset < PAGE_SIZE && offset.is_multiple_of(4), "no such word");
        // SAFETY: within the page (asserted), which stays mapped as long as `self`; aligned, since pages are. All access
        // to it in this process is through these atomics, and the device is as good as another thread.
        unsafe { AtomicU32::from_ptr(self.0.as_ptr().add(offset).cast()) }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: our own mapping, which nothing refers to any more: `word` borrows `self`.
        let result = unsafe { mman::munmap(self.0.cast(), PAGE_SIZE) };
        debug_assert!(result.is_ok(), "munmap of our own mapping: {result:?}");
    }
}

/// A user queue: its rings, its pages, and where the program stands in them.
///
/// One thread at a time drives it (`&mut self`); each thread of a program can have its own. Between two calls the driver may
/// lose the queue ([`QueueState::Lost`]), and then the next access raises `SIGBUS`, as for a file that was truncated: a program
/// that has to outlive resets of the function catches that, or does not use user queues. Once [`UserQueue::query`] or
/// [`UserQueue::wait`] has seen it, the pages are left alone: completions that are in the ring can still be collected.
#[derive(Debug)]
pub struct UserQueue<'d> {
    device: &'d Device,
    id: u32,
    sq: Option<Buffer>,
    cq: Option<Buffer>,
    sq_entries: u32,
    cq_entries: u32,
    doorbell: Page,
    wake: Page,
    eventfd: Option<EventFd>,
    /// Free-running index one past the last descriptor written.
    tail: u32,
    /// Free-running index of the next completion to read.
    head: u32,
    wakes: u64,
    /// The driver said so: the pages are not touched any more.
    lost: Cell<bool>,
}

// SAFETY: pages and rings belong to the process, not to a thread, and the queue is their only owner.
unsafe impl Send for UserQueue<'_> {}

impl<'d> UserQueue<'d> {
    /// Makes a queue on a bound context, with rings in fresh memory.
    pub fn create(device: &'d Device, options: UserQueueOptions) -> Result<Self> {
        let entries =
            |log2: u32| 1u32.checked_shl(log2).ok_or(Error::System { operation: "create_queue", errno: Errno::EINVAL });
        let (sq_entries, cq_entries) = (entries(options.sq_log2)?, entries(options.cq_log2)?);
        let sq = Buffer::anonymous(DESCRIPTOR * sq_entries as usize)?;
        let cq = Buffer::anonymous(COMPLETION * cq_entries as usize)?;
        let eventfd = options.interrupts.then(|| EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC));
        let eventfd = eventfd.transpose().map_err(Error::system("eventfd"))?;
        let mut args = CreateQueueArgs {
            argsz: size_of_u32::<CreateQueueArgs>(),
            sq: sq.address(),
            cq: cq.address(),
            sq_log2: options.sq_log2,
            cq_log2: options.cq_log2,
            eventfd: eventfd.as_ref().map_or(-1, |e| e.as_fd().as_raw_fd()),
            priority: u32::from(options.priority as u8),
            interrupt_interval_us: options.interrupt_interval_us.into(),
            interrupt_count: options.interrupt_count.into(),
            ..Default::default()
        };
        // SAFETY: `args` is a live structure of `argsz` bytes, all of which the kernel may write with any value. The rings
        // are buffers, which no reference points into, and stay until the queue is destroyed (`drop`).
        unsafe { abi::create_queue(device.as_raw_fd(), &raw mut args) }.map_err(Error::system("create_queue"))?;
        let pages = Page::map(device, args.doorbell_offset).and_then(|d| Ok((d, Page::map(device, args.wake_offset)?)));
        let (doorbell, wake) = match pages {
            Ok(pages) => pages,
            Err(error) => {
                // Whatever this says, `error` came first.
                let _ = destroy(device, args.queue);
                return Err(error);
            }
        };
        let (sq, cq, id) = (Some(sq), Some(cq), args.queue);
        Ok(Self {
            device,
            id,
            sq,
            cq,
            sq_entries,
            cq_entries,
            doorbell,
            wake,
            eventfd,
            tail: 0,
            head: 0,
            wakes: 0,
            lost: Cell::new(false),
        })
    }

    /// The driver's name for the queue.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Address of the submission ring.
    pub fn sq_address(&self) -> u64 {
        self.sq.as_ref().map_or(0, Buffer::address)
    }

    /// Address of the completion ring.
    pub fn cq_address(&self) -> u64 {
        self.cq.as_ref().map_or(0, Buffer::address)
    }

    /// Address of the doorbell page, for who wants to know what is mapped there.
    pub fn doorbell_address(&self) -> u64 {
        self.doorbell.0.as_ptr().expose_provenance() as u64
    }

    /// Address of the wake page.
    pub fn wake_address(&self) -> u64 {
        self.wake.0.as_ptr().expose_provenance() as u64
    }

    /// What completions signal, if the queue has interrupts: for programs that wait for more than a queue. Read it before the
    /// ring is looked at.
    pub fn eventfd(&self) -> Option<BorrowedFd<'_>> {
        self.eventfd.as_ref().map(AsFd::as_fd)
    }

    /// Stores to the wake page so far: each is a trap. All else in [`submit`](Self::submit) and
    /// [`poll_completions`](Self::poll_completions) is plain memory.
    pub fn wakes(&self) -> u64 {
        self.wakes
    }

    /// Descriptors that have no collected completion.
    pub fn in_flight(&self) -> u32 {
        self.tail.wrapping_sub(self.head)
    }

    /// Hands over descriptors, as many as the submission ring has room for, and says how many those are. No system call, no
    /// allocation; a trap only if the engine sleeps.
    ///
    /// # Panics
    /// The submission ring was taken away.
    ///
    /// # Safety
    /// As [`Device::submit`]: until each descriptor's completion is seen or the queue is destroyed, the device may write
    /// the memory that it names as destination, and reads what it names as source or list. The caller answers that no
    /// reference to the former and no exclusive reference to the latter lives meanwhile, and that nothing else relies on the
    /// bytes written.
    pub unsafe fn submit(&mut self, descriptors: &[Descriptor]) -> usize {
        if self.lost.get() {
            return 0;
        }
        // Acquire: the device has read the entries below its head before they are written again. Its word is the
        // program's to spoil, too, so it is not trusted to make sense.
        let used = self.tail.wrapping_sub(self.doorbell.word(doorbell::SQ_HEAD).load(Ordering::Acquire));
        let room = self.sq_entries.saturating_sub(used) as usize;
        let taken = &descriptors[..descriptors.len().min(room)];
        if taken.is_empty() {
            return 0;
        }
        for descriptor in taken {
            let mut raw = descriptor.raw;
            if self.eventfd.is_some() {
                raw.flags |= DescriptorFlags::INTERRUPT.bits();
            }
            let slot = (self.tail & (self.sq_entries - 1)) as usize;
            self.sq.as_ref().expect("the ring was not taken").write(slot * DESCRIPTOR, raw.as_bytes());
            self.tail = self.tail.wrapping_add(1);
        }
        // Release: a device that sees the tail sees the descriptors.
        publish(self.doorbell.word(doorbell::SQ_TAIL), self.tail);
        self.wake_if_armed();
        taken.len()
    }

    /// Takes what completions there are, in the order in which they were written, until `out` is full; says how many. No
    /// system call, no allocation. An unknown status is an error; that completion is consumed.
    ///
    /// # Panics
    /// The completion ring was taken away.
    pub fn poll_completions(&mut self, out: &mut [Completion]) -> Result<usize> {
        let full_before = self.in_flight() > self.cq_entries;
        let before = self.head;
        let mut stored = 0;
        let mut result = Ok(());
        while stored < out.len() && result.is_ok() {
            let Some(raw) = self.next_completion() else { break };
            match Completion::from_raw(&raw) {
                Ok(completion) => {
                    out[stored] = completion;
                    stored += 1;
                }
                Err(error) => result = Err(error),
            }
        }
        if self.head != before && !self.lost.get() {
            // Release: the entries have been read before the device may write them again.
            publish(self.doorbell.word(doorbell::CQ_HEAD), self.head);
            // Only where the ring may have been full does the device wait for room, perhaps asleep.
            if full_before {
                self.wake_if_armed();
            }
        }
        Ok(result.map(|()| stored)?)
    }

    /// The completion at the head, if it was written.
    fn next_completion(&mut self) -> Option<device::Completion> {
        let ring = self.cq.as_ref().expect("the ring was not taken");
        let at = (self.head & (self.cq_entries - 1)) as usize * COMPLETION;
        // SAFETY: within the ring, which is mapped as long as it is ours; aligned, since entries are. The device is as
        // good as another thread that stores it atomically.
        let seq = unsafe { AtomicU32::from_ptr(ring.as_ptr().add(at + SEQ).cast()) };
        // Acquire: the entry is whole once its number is seen.
        if seq.load(Ordering::Acquire) != self.head.wrapping_add(1) {
            return None;
        }
        let mut raw = device::Completion::new_zeroed();
        ring.read(at, raw.as_mut_bytes());
        self.head = self.head.wrapping_add(1);
        Some(raw)
    }

    /// After a word was published; why that is enough is said where [`must_wake`] is.
    fn wake_if_armed(&mut self) {
        if must_wake(self.doorbell.word(doorbell::ARMED)) {
            self.wake.word(0).store(1, Ordering::Relaxed);
            self.wakes += 1;
        }
    }

    /// Collects completions until `out` is full or the time is over; says how many. Looks at the ring for a while, then sleeps if
    /// the queue has interrupts, and yields the processor between looks if not. Fewer, even none, is no error: see
    /// [`query`](Self::query) for whether the queue still works.
    pub fn wait(&mut self, out: &mut [Completion], timeout: Duration) -> Result<usize> {
        let start = Instant::now();
        let mut stored = 0;
        let mut spin_until = start + SPIN;
        let mut signalled = false;
        loop {
            let more = self.poll_completions(&mut out[stored..])?;
            stored += more;
            let now = Instant::now();
            if stored == out.len() || now - start >= timeout {
                return Ok(stored);
            }
            if more != 0 {
                (spin_until, signalled) = (now + SPIN, false);
            } else if now < spin_until {
                std::hint::spin_loop();
            } else {
                // A signal without a completion: another queue's, or this one stopped. Then nothing comes but what was
                // written before.
                if signalled && self.query()?.state != QueueState::Running {
                    return Ok(stored + self.poll_completions(&mut out[stored..])?);
                }
                signalled = self.sleep(timeout - (now - start))?;
            }
        }
    }

    /// Sleeps until the eventfd is signalled or the time is over, and says whether it was; only yields without one.
    fn sleep(&self, timeout: Duration) -> Result<bool> {
        let Some(eventfd) = &self.eventfd else {
            std::thread::yield_now();
            return Ok(false);
        };
        let mut fds = [PollFd::new(eventfd.as_fd(), PollFlags::POLLIN)];
        // Rounded up, so that a timeout is never early.
        let timeout = PollTimeout::try_from(timeout + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, timeout) {
            // The counter is emptied before the ring is looked at again: a completion after that signals anew.
            Ok(1..) => match eventfd.read() {
                Ok(_) | Err(Errno::EAGAIN) => Ok(true),
                Err(errno) => Err(errno),
            },
            Ok(_) | Err(Errno::EINTR) => Ok(false),
            Err(errno) => Err(errno),
        }
        .map_err(Error::system("eventfd"))
    }

    /// What the driver says about the queue. A system call and a trip to the device.
    pub fn query(&self) -> Result<QueueQuery> {
        let mut args = QueryQueueArgs { argsz: size_of_u32::<QueryQueueArgs>(), queue: self.id, ..Default::default() };
        // SAFETY: `args` is a live structure of `argsz` bytes, all of which the kernel may write with any value.
        unsafe { abi::query_queue(self.device.as_raw_fd(), &raw mut args) }.map_err(Error::system("query_queue"))?;
        let state = match args.state {
            abi::QUEUE_RUNNING => QueueState::Running,
            abi::QUEUE_HALTED => QueueState::Halted,
            _ => QueueState::Lost,
        };
        self.lost.set(state == QueueState::Lost);
        Ok(QueueQuery { state, error: u8::try_from(args.error).unwrap_or(u8::MAX), fault_address: args.fault_address })
    }

    /// Stores any word of the doorbell page, for tests of what the device makes of it.
    ///
    /// # Safety
    /// A tail makes descriptors of whatever is in the ring: the caller answers for what they do, as for
    /// [`submit`](Self::submit). Afterwards the queue's own idea of its indexes is wrong.
    pub unsafe fn ring_doorbell(&mut self, word: u64, value: u32) {
        publish(self.doorbell.word(word), value);
        self.wake_if_armed();
    }

    /// Takes the submission ring out of the queue, for tests of what becomes of a queue whose ring vanishes. The device still
    /// reads there; `submit` panics from now on.
    pub fn take_sq(&mut self) -> Option<Buffer> {
        self.sq.take()
    }

    /// As [`take_sq`](Self::take_sq), for the completion ring.
    ///
    /// # Safety
    /// The device still writes completions there until the queue is destroyed: as for [`submit`](Self::submit), the caller
    /// answers for the memory, also if it is mapped anew.
    pub unsafe fn take_cq(&mut self) -> Option<Buffer> {
        self.cq.take()
    }

    /// Ends the queue, with a word if that fails. Work that is not done ends as aborted; nobody can collect that any more.
    pub fn destroy(self) -> Result<()> {
        let result = destroy(self.device, self.id);
        // `drop` finds no such queue and frees the memory.
        drop(self);
        result
    }
}

fn destroy(device: &Device, id: u32) -> Result<()> {
    let mut args = DestroyQueueArgs { argsz: size_of_u32::<DestroyQueueArgs>(), queue: id, ..Default::default() };
    loop {
        // SAFETY: `args` is a live structure of `argsz` bytes.
        match unsafe { abi::destroy_queue(device.as_raw_fd(), &raw mut args) } {
            // A signal came before anything was done.
            Err(Errno::EINTR) => {}
            result => return result.map(drop).map_err(Error::system("destroy_queue")),
        }
    }
}

impl Drop for UserQueue<'_> {
    /// Before the rings are unmapped: then no page of them is asked for in vain. In a forked child, to which the queue
    /// does not belong, this is refused and only its copies of the rings go.
    fn drop(&mut self) {
        let _ = destroy(self.device, self.id);
    }
}
