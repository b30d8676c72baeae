//! User queues: rings in the program's own memory, submission without a system call.
#![allow(unsafe_code, reason = "submits work by the rule of `Work`; probes and unmaps pages; seccomp")]
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use svadev_guest::abi::CreateQueueArgs;
use svadev_guest::{Buffer, Code, Completion, Descriptor, QueueState, UserQueue, UserQueueOptions};

use crate::harness::{Context, Expected, Test, Verdict};
use crate::memory::{PAGE, check_bytes, small_pages};
use crate::smoke::opcodes::check_success;
use crate::{check, check_eq};

mod ends;
mod refused;
mod wakes;
mod work;

pub(super) const TESTS: &[Test] = &[
    Test::each("user_queue.create_and_destroy", work::create_and_destroy),
    Test::each("user_queue.every_opcode", work::every_opcode),
    Test::each("user_queue.ring_wraps", work::ring_wraps),
    Test::each("user_queue.completion_ring_full", work::completion_ring_full),
    Test::each("user_queue.batch_and_fence", work::batch_and_fence),
    Test::each("user_queue.faults.wait_on_untouched", work::faults_wait),
    Test::each("user_queue.faults.stop_policy_and_unmapped", work::faults_stop).needs_page_requests(),
    Test::each("user_queue.no_system_call", wakes::no_system_call).needs_page_requests().allows(GONE),
    Test::each("user_queue.wakes_a_sleeping_engine", wakes::wakes_sleeper),
    Test::each("user_queue.eventfd_wakes", wakes::eventfd_wakes),
    Test::each("user_queue.interrupts_are_moderated", wakes::moderated),
    Test::each("user_queue.every_priority_is_served", wakes::priorities),
    Test::each("user_queue.broken_arguments", refused::broken_arguments),
    Test::each("user_queue.pasid_field_is_reserved", refused::pasid_reserved),
    Test::each("user_queue.halts.bad_tail", refused::bad_tail),
    Test::each("user_queue.halts.bad_cq_head", refused::bad_cq_head),
    Test::each("user_queue.halts.submission_ring_unmapped", refused::sq_unmapped),
    Test::each("user_queue.halts.completion_ring_unmapped", refused::cq_unmapped),
    Test::each("user_queue.limits", refused::limits),
    Test::each("user_queue.pages_end_with_the_queue", ends::pages_end),
    Test::each("user_queue.unbind_while_running", ends::unbind_running),
    Test::each("user_queue.fork_has_no_pages", ends::fork_no_pages).needs_page_requests(),
    Test::each("user_queue.two_processes", ends::two_processes).needs_page_requests(),
    Test::each("user_queue.exit_while_running", ends::exit_running).allows(GONE),
    Test::each("user_queue.sigkill_while_running", ends::kill_running).allows(GONE),
    Test::each("user_queue.reset_takes_queues_away", ends::reset_loses).timeout_s(30).allows(GONE),
];

/// As in `lifetime.rs`: what the device asks for between the death of an address space and its own end is recorded.
const GONE: Expected = Expected::DmarFault;

const POLLED: UserQueueOptions = UserQueueOptions::POLLED;

/// What makes a queue of 16 entries each way, polled, with its rings on the first two pages of `rings`.
fn create_args(rings: &Buffer) -> Verdict<CreateQueueArgs> {
    Ok(CreateQueueArgs {
        argsz: u32::try_from(size_of::<CreateQueueArgs>())?,
        sq: rings.address(),
        cq: rings.at(4096),
        sq_log2: 4,
        cq_log2: 4,
        eventfd: -1,
        ..Default::default()
    })
}

/// Submitting through a queue, by the rule of [`Work`](crate::harness::Work).
trait Ring {
    fn post(&mut self, descriptors: &[Descriptor]) -> usize;
    fn collect(&mut self, c: &Context, count: usize) -> Verdict<Vec<Completion>>;
    fn go(&mut self, c: &Context, descriptor: &Descriptor) -> Verdict<Completion>;
}

impl Ring for UserQueue<'_> {
    fn post(&mut self, descriptors: &[Descriptor]) -> usize {
        // SAFETY: the rule that `Work` states.
        unsafe { self.submit(descriptors) }
    }

    fn collect(&mut self, c: &Context, count: usize) -> Verdict<Vec<Completion>> {
        let mut out = vec![blank(); count];
        let got = self.wait(&mut out, c.limit(Duration::from_secs(10)))?;
        check!(got == count, "expected {count} completions, actual {got}: {:?}, {:?}", &out[..got], self.query());
        Ok(out)
    }

    fn go(&mut self, c: &Context, descriptor: &Descriptor) -> Verdict<Completion> {
        check_eq!(self.post(std::slice::from_ref(descriptor)), 1, "taken of one");
        Ok(self.collect(c, 1)?[0])
    }
}
fn blank() -> Completion {
    Completion { cookie: 0, code: Code::Aborted, fault: svadev_guest::FaultFlags::empty(), bytes_done: 0, result: 0 }
}

fn errno<T: std::fmt::Debug>(result: svadev_guest::Result<T>) -> Option<Errno> {
    result.err().and_then(|e| e.errno())
}

/// Whether the page at an address can be read, without a signal if it cannot: the kernel reads it for write(2).
fn readable(address: u64) -> Verdict<bool> {
    let (_read, write) = nix::unistd::pipe()?;
    let pointer = std::ptr::with_exposed_provenance::<libc::c_void>(usize::try_from(address)?);
    // SAFETY: write(2) reads 4 bytes there or fails with EFAULT; it changes no memory.
    let result = Errno::result(unsafe { libc::write(write.as_raw_fd(), pointer, 4) });
    match result {
        Ok(_) => Ok(true),
        Err(Errno::EFAULT) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Wait until the driver says that the queue stopped, and why.
fn wait_halted(c: &Context, queue: &UserQueue, error: u8, address: u64) -> Verdict {
    let deadline = Instant::now() + c.limit(Duration::from_secs(5));
    loop {
        let query = queue.query()?;
        if query.state != QueueState::Running {
            check_eq!(query.state, QueueState::Halted, "state");
            check_eq!(query.error, error, "reason of the halt");
            check_eq!(query.fault_address, address, "address of the halt");
            return Ok(());
        }
        check!(Instant::now() < deadline, "the queue still runs: {query:?}");
        std::thread::yield_now();
    }
}

/// That a queue works: one copy, with its bytes.
fn check_serves(c: &Context, queue: &mut UserQueue) -> Verdict {
    let memory = small_pages(2 * 4096)?;
    memory.write(0, &[0x6b; 4096]);
    let done = queue.go(c, &Descriptor::copy(memory.address(), memory.at(4096), PAGE))?;
    check_success(&done, PAGE, "copy through a user queue")?;
    check_bytes(&memory.bytes(4096, 4096), &[0x6b; 4096], "copy through a user queue")
}
