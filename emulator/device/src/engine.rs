//! An engine: the queues it serves, one bounded slice at a time.
//!
//! ```text
//!   loop {
//!       match engine.run(now) {
//!           Worked => continue,
//!           Idle { until_ns } => after some spinning: if engine.park() { sleep until a wake or until_ns }
//!       }
//!   }
//! ```
use std::sync::Arc;

use svadev_fabric::Upstream;
use svadev_memory::GuestMemory;
use svadev_mutation::mutant;

use crate::context::Context;
use crate::copy::Slice;
use crate::engine_side::Presence;
use crate::mailbox::{Command, Invalidation, Mailbox};
use crate::obligation::Obligation;
use crate::queue::{Horizon, Queue};
use crate::requester::Requester;
use crate::shared::FunctionShared;

/// What [`Engine::run`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Something was done; there may be more.
    Worked,
    /// There is nothing to do before a doorbell, a message or `until_ns`.
    Idle {
        /// When a wait for a page ends, ns on the clock of [`Engine::run`]; never late, perhaps early.
        until_ns: Option<u64>,
    },
}

/// A command that this engine has not finished.
struct Pending {
    command: Command,
    obligation: Obligation,
    /// When an abort no longer waits for answers to page requests, ns (L7).
    until_ns: u64,
}

/// One DMA engine of a function: owned by one thread, which calls [`run`](Self::run) again and again.
pub struct Engine<M: GuestMemory + ?Sized, U: Upstream + ?Sized> {
    cx: Context<M, U>,
    /// The queues with number `engine` modulo the engines, in order.
    queues: Box<[Queue]>,
    /// The queue to be served next.
    next: usize,
    /// Where the mailbox is emptied into; empty between calls.
    taken: Box<Mailbox>,
    /// CONTROL.enable 1 → 0, to be acknowledged when every queue is off.
    disables: Vec<Obligation>,
    command: Option<Pending>,
    /// Submission ring indexes when the command was taken, by queue.
    horizons: Box<[Horizon]>,
    presence: Presence,
}

impl<M: GuestMemory + ?Sized, U: Upstream + ?Sized> Engine<M, U> {
    pub(crate) fn new(index: usize, shared: Arc<FunctionShared>, memory: Arc<M>, upstream: Arc<U>) -> Self {
        let settings = *shared.settings();
        let numbers = (index..usize::from(settings.queues)).step_by(usize::from(settings.engines));
        let queues: Box<[_]> = numbers
            .enumerate()
            .map(|(position, number)| {
                Queue::new(number, position, settings.jobs_per_queue, 2 * settings.list_jobs_per_queue)
            })
            .collect();
        let requester = Requester::new(index, Arc::clone(&shared), memory, upstream);
        let parts = queues.len() * (settings.jobs_per_queue + 2);
        Self {
            cx: Context::new(index, requester, shared, parts),
            horizons: vec![Horizon::default(); queues.len()].into(),
            queues,
            next: 0,
            taken: Box::new(Mailbox::new(usize::from(settings.queues))),
            disables: Vec::with_capacity(4),
            command: None,
            presence: Presence::default(),
        }
    }

    /// The engine's index in its function.
    pub fn index(&self) -> usize {
        self.cx.engine
    }

    /// One slice of work, at most 64 KiB of copying, at `now_ns` on a monotonic clock. Messages are taken first: an
    /// invalidation that came during the last slice is acknowledged here.
    pub fn run(&mut self, now_ns: u64) -> Progress {
        self.cx.now_ns = now_ns;
        let mut worked = if self.presence.is_online() { self.take_messages() } else { self.unpark() };
        if now_ns >= self.cx.next_deadline_ns {
            worked |= self.expire();
        }
        worked |= self.move_line();
        let slice = Slice::begin(self.cx.shared.gate());
        worked |= self.serve(&slice);
        worked |= self.settle();
        if worked {
            return Progress::Worked;
        }
        Progress::Idle { until_ns: (self.cx.next_deadline_ns != u64::MAX).then_some(self.cx.next_deadline_ns) }
    }

    /// Before sleeping, with nothing to do: says so in the doorbells, goes offline, and looks once more. `true`: the thread
    /// may sleep until [`FunctionPorts::wake`](crate::FunctionPorts::wake) or the time that `run` named. `false`: work came.
    pub fn park(&mut self) -> bool {
        if !self.presence.is_online() {
            return true;
        }
        let Self { presence, cx, queues, .. } = self;
        let arm = || queues.iter().for_each(|queue| queue.arm(cx, true));
        let rung = || queues.iter().any(|queue| queue.is_rung(cx)) && !mutant!(SleepWithoutDoorbells);
        if !presence.rest(cx.shared.engine_side(cx.engine), arm, rung) {
            self.unpark();
            return false;
        }
        self.cx.counters().parks.add(1);
        true
    }

    /// Goes online again: no translation is used before the mailbox is empty. `run` does it too. Whether there were messages.
    pub fn unpark(&mut self) -> bool {
        if self.presence.is_online() {
            return false;
        }
        let posted = self.presence.arrive(self.cx.shared.engine_side(self.cx.engine));
        for queue in &self.queues {
            queue.arm(&self.cx, false);
        }
        if posted {
            self.empty_mailbox();
        }
        posted
    }

    /// Serves the next queue that has anything to do.
    fn serve(&mut self, slice: &Slice) -> bool {
        for _ in 0..self.queues.len() {
            let position = self.next;
            self.next = (position + 1) % self.queues.len();
            if self.queues[position].serve(&mut self.cx, slice) {
                return true;
            }
        }
        false
    }

    fn take_messages(&mut self) -> bool {
        let posted = self.presence.look(self.cx.shared.engine_side(self.cx.engine));
        if posted {
            self.empty_mailbox();
        }
        posted
    }

    /// Takes what is in the mailbox and does it. No span exists here: this is between two slices.
    fn empty_mailbox(&mut self) {
        self.cx.shared.engine_side(self.cx.engine).take_into(&mut self.taken);
        if !self.taken.resets.is_empty() {
            self.reset();
        }
        let Self { taken, cx, .. } = self;
        let owed = taken.carry_out(|invalidation| {
            if !mutant!(EngineDropsNothing) {
                cx.requester.invalidate(invalidation);
            }
            cx.counters().invalidations.add(1);
        });
        for obligation in owed {
            cx.acknowledge(obligation);
        }
        self.take_answers();
        if std::mem::take(&mut self.taken.credit) {
            self.cx.credit();
        }
        self.take_queue_changes();
        while let Some(obligation) = self.taken.disables.pop() {
            for queue in &mut self.queues {
                queue.disable(&mut self.cx);
            }
            self.disables.push(obligation);
        }
        if let Some((command, obligation)) = self.taken.command.take() {
            debug_assert!(self.command.is_none(), "COMMAND is ignored while it is busy");
            for (horizon, queue) in self.horizons.iter_mut().zip(&self.queues) {
                *horizon = queue.horizon(&self.cx);
            }
            let until_ns = self.cx.now_ns.saturating_add(self.cx.shared.settings().page_request_timeout_ns);
            self.cx.deadline(until_ns);
            self.command = Some(Pending { command, obligation, until_ns });
        }
    }

    /// Function reset: nothing of before is left, but page requests that are outstanding stay so until they are answered.
    fn reset(&mut self) {
        for queue in &mut self.queues {
            if !mutant!(ResetKeepsQueues) {
                queue.reset(&mut self.cx);
            }
        }
        self.cx.requester.invalidate(Invalidation::ALL);
        if let Some(pending) = self.command.take() {
            self.cx.acknowledge(pending.obligation);
        }
        while let Some(obligation) = self.disables.pop() {
            self.cx.acknowledge(obligation);
        }
        while let Some(obligation) = self.taken.resets.pop() {
            self.cx.acknowledge(obligation);
        }
    }

    fn take_answers(&mut self) {
        for word in 0..self.taken.answered.len() {
            let mut bits = std::mem::take(&mut self.taken.answered[word]);
            while bits != 0 {
                let bit = bits.trailing_zeros() as usize;
                bits &= bits - 1;
                // Nobody waits where the group was abandoned after it was answered.
                if let Some(waiter) = self.cx.waiter(word * 64 + bit) {
                    self.queues[waiter.queue].answered(&mut self.cx, waiter.part);
                }
            }
        }
    }

    fn take_queue_changes(&mut self) {
        if !std::mem::take(&mut self.taken.queues_changed) {
            return;
        }
        for queue in &mut self.queues {
            let change = std::mem::take(&mut self.taken.queues[queue.number()]);
            if change.disable {
                queue.disable(&mut self.cx);
            }
            if let Some(config) = change.enable {
                queue.enable(&mut self.cx, config);
            }
        }
    }

    /// Ends waits whose time is up.
    fn expire(&mut self) -> bool {
        // Those that go on waiting put theirs in again.
        self.cx.next_deadline_ns = u64::MAX;
        let mut changed = false;
        for queue in &mut self.queues {
            changed |= queue.expire(&mut self.cx);
        }
        if let Some(pending) = &self.command
            && self.cx.now_ns < pending.until_ns
        {
            self.cx.deadline(pending.until_ns);
        }
        changed
    }

    /// Lets the next in line ask again, one at a time: the first that finds no room stops the line.
    fn move_line(&mut self) -> bool {
        let Some(waiter) = self.cx.next_in_line() else { return false };
        self.queues[waiter.queue].move_up(&mut self.cx, waiter.part);
        true
    }

    /// Acknowledges what has come true meanwhile: queues that stopped, a command that is over.
    fn settle(&mut self) -> bool {
        let mut settled = false;
        if !self.disables.is_empty() && self.queues.iter().all(Queue::is_off) {
            while let Some(obligation) = self.disables.pop() {
                self.cx.acknowledge(obligation);
            }
            settled = true;
        }
        if let Some(pending) = self.command.take() {
            if self.is_over(&pending) {
                self.cx.acknowledge(pending.obligation);
                settled = true;
            } else {
                self.command = Some(pending);
            }
        }
        settled
    }

    /// An abort is over when the PASID's page requests are answered, too (PCIe 6.0 §10.4.1.2, the first of the two ways to
    /// stop using a PASID): whoever unbinds it next finds no request of it in any queue. A guest kernel may rely on that:
    /// Linux 7.3 skips its own drain when the process died first (`docs/found.md`).
    fn is_over(&mut self, pending: &Pending) -> bool {
        let mut queues = self.queues.iter_mut().zip(&self.horizons);
        match pending.command {
            Command::Drain(_) if mutant!(DrainCommandIgnored) => true,
            Command::Drain(pasid) => queues.all(|(queue, &until)| queue.is_drained(pasid, until)),
            Command::Abort(pasid) => {
                let mut over = true;
                for (queue, &until) in queues {
                    over &= queue.abort(&mut self.cx, pasid, until);
                }
                self.cx.requester.invalidate(Invalidation::pasid(pasid));
                over && (self.cx.now_ns >= pending.until_ns
                    || !self.cx.shared.prg().is_outstanding(self.cx.engine, pasid)
                    || mutant!(AbortWithoutResponses))
            }
        }
    }
}

#[cfg(test)]
impl<M: GuestMemory + ?Sized, U: Upstream + ?Sized> Engine<M, U> {
    /// Lets a queue go on from another index, as after billions of descriptors.
    pub(crate) fn set_indexes(&mut self, position: usize, index: u64) {
        self.queues[position].set_indexes(index);
    }
}

impl<M: GuestMemory + ?Sized, U: Upstream + ?Sized> Drop for Engine<M, U> {
    /// An engine that is gone uses nothing any more: whoever waits for it is told so.
    fn drop(&mut self) {
        for queue in &mut self.queues {
            queue.reset(&mut self.cx);
        }
        let shared = Arc::clone(&self.cx.shared);
        let mut presence = std::mem::take(&mut self.presence);
        presence.leave(shared.engine_side(self.cx.engine), || {
            self.empty_mailbox();
            self.reset();
        });
    }
}
