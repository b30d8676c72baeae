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
#![allow(unsafe_code, reason = "vouches for the place in its loop where a slice may begin")]
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use svadev_endpoint::{Invalidation, Mailbox, Obligation, Platform, Presence, Requester, Resume, Slice, WaitFor};
use svadev_mirror::SideState;
use svadev_mutation::mutant;

use crate::context::Context;
use crate::orders::{COMMANDS, Command, Done, Orders};
use crate::policy::{ALWAYS_WATCHED, LOOKS, SLICE_COST, VISIT_COST, WATCH_NS, WATCH_NS_MOST};
use crate::queue::{Horizon, Queue, QueueState};
use crate::schedule::Schedule;
use crate::shared::FunctionShared;

/// What [`Engine::run`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Something was done; there may be more.
    Worked,
    /// There is nothing to do before a doorbell, a message or `until_ns`.
    Idle {
        /// When a wait for a page ends, or an interrupt is due, ns on the clock of [`Engine::run`]; never late, perhaps
        /// early.
        until_ns: Option<u64>,
    },
}

/// A command that this engine has not finished.
struct Pending {
    command: Command,
    obligation: Obligation<Done>,
    /// Time at which the command ends even if something is missing, ns (L7): for a drain, work that has not completed;
    /// for an abort, answers to page requests.
    until_ns: u64,
}

/// The work of an engine as a plain value, to be saved and restored.
#[derive(Clone, Debug)]
pub(crate) struct EngineState {
    queues: Box<[QueueState]>,
    /// A disable of the function that is not acknowledged, and when it no longer waits for answers, ns.
    pub(crate) disabling: Option<u64>,
    disabled_runs: Box<[u64]>,
    /// Commands that are not finished, by number, and when each ends at its limit, ns.
    pub(crate) commands: [Option<(Command, u64)>; COMMANDS],
    horizons: Box<[Horizon]>,
    mirror: SideState,
    mirror_vector: Option<u16>,
}

/// One DMA engine of a function: owned by one thread, which calls [`run`](Self::run) again and again.
pub struct Engine<P: Platform> {
    cx: Context<P>,
    /// The queues with number `engine` modulo the engines, in order.
    queues: Box<[Queue]>,
    schedule: Schedule,
    /// Where the mailbox is emptied into; empty between calls.
    taken: Box<Mailbox<Orders>>,
    /// CONTROL.enable 1 → 0, to be acknowledged when every queue has been off and page requests are answered.
    disables: Vec<Obligation<Done>>,
    /// When `disables` no longer wait for answers to page requests, ns.
    disables_until_ns: u64,
    /// Runs of the queues when the function was disabled last, by queue: a later run began after the queue was off.
    disabled_runs: Box<[u64]>,
    /// By number.
    commands: [Option<Pending>; COMMANDS],
    /// Bit n: element n of `commands` is set.
    commands_pending: u32,
    /// Submission ring indexes when the commands were taken: a row of all queues for each.
    horizons: Box<[Horizon]>,
    presence: Presence,
}

impl<P: Platform> Engine<P> {
    pub(crate) fn new(
        index: usize,
        shared: Arc<FunctionShared>,
        memory: Arc<P::Memory>,
        upstream: Arc<P::Upstream>,
    ) -> Self {
        let settings = *shared.settings();
        let numbers = (index..usize::from(settings.queues)).step_by(usize::from(settings.engines));
        let queues: Box<[_]> = numbers
            .enumerate()
            .map(|(position, number)| {
                Queue::new(number, position, settings.jobs_per_queue, 2 * settings.list_jobs_per_queue)
            })
            .collect();
        let parts = queues.len() * (settings.jobs_per_queue + 2);
        let requester = Requester::new(index, shared.endpoint(), memory, upstream, parts);
        Self {
            cx: Context::new(index, requester, shared, parts),
            horizons: vec![Horizon::default(); COMMANDS * queues.len()].into(),
            schedule: Schedule::new(queues.len()),
            disabled_runs: vec![0; queues.len()].into(),
            queues,
            taken: Box::new(Mailbox::new(Orders::new(usize::from(settings.queues)))),
            disables: Vec::with_capacity(4),
            disables_until_ns: 0,
            commands: [const { None }; COMMANDS],
            commands_pending: 0,
            presence: Presence::default(),
        }
    }

    /// The engine's index in its function.
    pub fn index(&self) -> usize {
        self.cx.engine
    }

    /// One slice of work, at most 64 KiB of copying, over as many queues as it reaches, at `now_ns` on a monotonic
    /// clock. Messages are taken first: an invalidation that came during the last slice is acknowledged here.
    pub fn run(&mut self, now_ns: u64) -> Progress {
        self.cx.now_ns = now_ns;
        let mut worked = if self.presence.is_online() { self.take_messages() } else { self.unpark() };
        if now_ns >= self.cx.waits.next_deadline_ns() {
            worked |= self.expire();
        }
        self.raise_delayed();
        worked |= self.move_line();
        worked |= self.take_mirror_answers();
        self.look();
        if !self.schedule.is_idle() {
            // SAFETY: the engine is online, and has emptied its mailbox and looked at the mirror above; the slice ends
            // before it looks there again.
            let slice = unsafe { Slice::begin(self.cx.endpoint().gate()) };
            worked |= self.serve(&slice);
        }
        worked |= self.settle();
        self.cx.mirror_work();
        if worked {
            return Progress::Worked;
        }
        Progress::Idle { until_ns: self.cx.next_ns() }
    }

    /// Before sleeping, with nothing to do: says so in the doorbells, goes offline, and looks once more. `true`: the
    /// thread may sleep until [`FunctionPorts::wake`](crate::FunctionPorts::wake) or the time that `run` named.
    /// `false`: work came.
    pub fn park(&mut self) -> bool {
        if !self.presence.is_online() {
            return true;
        }
        // The guest's driver first: if it has posted something, the mailbox still counts as looked at.
        let gate = self.cx.endpoint().gate();
        if !self.cx.requester.mirror_rest(gate) {
            self.cx.requester.mirror_look(gate);
            self.cx.mirror_work();
            return false;
        }
        let Self { presence, cx, queues, schedule, .. } = self;
        let arm = || schedule.watched().iter().for_each(|&position| queues[position].arm(cx, true));
        let rung = || {
            let rung = schedule.watched().iter().any(|&position| queues[position].is_rung(cx));
            !schedule.is_idle() || (rung && !mutant!(SleepWithoutDoorbells))
        };
        if !presence.rest(cx.endpoint().side(cx.engine), arm, rung) {
            self.unpark();
            return false;
        }
        self.cx.endpoint_counters().parks.add(1);
        true
    }

    /// Goes online again: no translation is used before the mailbox is empty. `run` does it too. Whether there were
    /// messages.
    pub fn unpark(&mut self) -> bool {
        if self.presence.is_online() {
            return false;
        }
        let posted = self.presence.arrive(self.cx.endpoint().side(self.cx.engine));
        for &position in self.schedule.watched() {
            self.queues[position].arm(&self.cx, false);
        }
        if posted {
            self.empty_mailbox();
        }
        let gate = self.cx.endpoint().gate();
        self.cx.requester.mirror_look(gate);
        posted
    }

    /// Does what it was told, ends every wait, and goes offline: it uses no translation until it runs again, and then
    /// what waited asks again.
    pub(crate) fn pause(&mut self, now_ns: u64) {
        // The time limit of a command that is in the mailbox begins now.
        self.cx.now_ns = now_ns;
        if self.presence.is_online() {
            self.take_messages();
        } else {
            self.unpark();
        }
        for position in 0..self.queues.len() {
            self.queues[position].end_waits(&mut self.cx, |_, _| Some(Resume::Retry));
            self.queues[position].arm(&self.cx, false);
            self.schedule.activate(position);
        }
        let shared = Arc::clone(&self.cx.shared);
        let mut presence = std::mem::take(&mut self.presence);
        presence.leave(shared.endpoint().side(self.cx.engine), || self.empty_mailbox());
        self.presence = presence;
        let gate = self.cx.endpoint().gate();
        self.cx.requester.mirror_leave(gate);
        self.cx.mirror_work();
    }

    /// The state of an engine that is paused.
    pub(crate) fn save(&self) -> EngineState {
        debug_assert!(!self.presence.is_online(), "it was paused");
        EngineState {
            queues: self.queues.iter().map(Queue::save).collect(),
            disabling: (!self.disables.is_empty()).then_some(self.disables_until_ns),
            disabled_runs: self.disabled_runs.clone(),
            commands: std::array::from_fn(|number| match &self.commands[number] {
                Some(pending) if !mutant!(SaveForgetsCommand) => Some((pending.command, pending.until_ns)),
                _ => None,
            }),
            horizons: self.horizons.clone(),
            mirror: self.cx.requester.mirror().save(),
            mirror_vector: self.cx.mirror_vector,
        }
    }

    /// Goes on with a state that was saved from an engine of the same settings. `disable` and `command` (by number) are
    /// its shares of what that engine had not acknowledged.
    pub(crate) fn restore(
        &mut self,
        state: &EngineState,
        disable: Option<Obligation<Done>>,
        command: impl Fn(usize) -> Option<Obligation<Done>>,
    ) {
        for (position, (queue, state)) in self.queues.iter_mut().zip(&state.queues).enumerate() {
            queue.restore(&mut self.cx, state);
            self.schedule.activate(position);
        }
        self.horizons.clone_from(&state.horizons);
        self.cx.requester.mirror_mut().restore(&state.mirror);
        self.cx.mirror_vector = state.mirror_vector;
        self.disabled_runs.clone_from(&state.disabled_runs);
        if let Some((until_ns, disable)) = state.disabling.zip(disable) {
            self.cx.waits.deadline(until_ns);
            self.disables_until_ns = until_ns;
            self.disables.push(disable);
        }
        for (number, saved) in state.commands.iter().enumerate() {
            if let Some(((command, until_ns), obligation)) = saved.zip(command(number)) {
                self.take_up(number, Pending { command, obligation, until_ns });
            }
        }
    }

    /// Looks at some of the queues that had nothing to do.
    fn look(&mut self) {
        for _ in 0..self.schedule.watched().len().min(LOOKS) {
            let Some(position) = self.schedule.next_watched() else { return };
            let queue = &self.queues[position];
            if queue.is_rung(&self.cx) {
                self.schedule.activate(position);
            } else if self.schedule.watched().len() > ALWAYS_WATCHED
                && self.cx.now_ns >= queue.idle_since_ns.saturating_add(queue.watch_ns)
            {
                self.leave_alone(position);
            }
        }
    }

    /// No longer looks at a queue that is idle, and says so in its doorbell. As in [`park`](Self::park): of *store the
    /// word, full fence, load `ARMED`* there and *store `ARMED`, full fence, load the word* here, at least one side
    /// sees the other.
    fn leave_alone(&mut self, position: usize) {
        let queue = &mut self.queues[position];
        queue.watch_ns = (queue.watch_ns / 2).max(WATCH_NS);
        queue.arm(&self.cx, true);
        fence(Ordering::SeqCst);
        if queue.is_rung(&self.cx) {
            queue.arm(&self.cx, false);
            self.schedule.activate(position);
        } else {
            self.schedule.unwatch(position);
        }
    }

    /// A queue may have something to do, and may have been left alone.
    fn activate(&mut self, position: usize) {
        if self.schedule.is_nowhere(position) {
            let queue = &mut self.queues[position];
            queue.watch_ns = queue.watch_ns.saturating_mul(4).min(WATCH_NS_MOST);
        }
        self.queues[position].arm(&self.cx, false);
        self.schedule.activate(position);
    }

    /// Serves queues in turn, until the slice is used up or none has anything to do.
    fn serve(&mut self, slice: &Slice) -> bool {
        let mut left = SLICE_COST;
        let mut worked = false;
        while left > 0 {
            let Some((position, credit)) = self.schedule.turn(|position| self.queues[position].weight()) else { break };
            let granted = credit.min(left);
            let mut budget = granted;
            let queue = &mut self.queues[position];
            let served = queue.serve(&mut self.cx, slice, &mut budget);
            let cost = granted - budget;
            left -= cost + VISIT_COST;
            worked |= served.worked;
            if served.more {
                self.schedule.spent(position, cost);
            } else {
                queue.idle_since_ns = self.cx.now_ns;
                // Before it is watched, should something else than its wake page have brought it back.
                queue.arm(&self.cx, false);
                self.schedule.rests(position, cost, queue.is_on());
            }
        }
        worked
    }

    fn take_messages(&mut self) -> bool {
        let posted = self.presence.look(self.cx.endpoint().side(self.cx.engine));
        if posted {
            self.empty_mailbox();
        }
        let gate = self.cx.endpoint().gate();
        // The driver's own list of what must go, beside the mailbox.
        posted | self.cx.requester.mirror_look(gate)
    }

    /// Takes what is in the mailbox and does it. No span exists here: this is between two slices.
    fn empty_mailbox(&mut self) {
        self.cx.endpoint().side(self.cx.engine).take_into(&mut self.taken);
        if !self.taken.device.resets.is_empty() {
            self.reset();
        }
        let Self { taken, cx, .. } = self;
        let due = taken.carry_out(|invalidation| {
            if !mutant!(EngineDropsNothing) {
                cx.requester.invalidate(invalidation);
            }
            cx.endpoint_counters().invalidations.add(1);
        });
        for obligation in due {
            cx.acknowledge(obligation);
        }
        self.take_answers();
        if std::mem::take(&mut self.taken.credit) {
            self.cx.waits.credit(self.cx.now_ns);
        }
        if !self.taken.device.disables.is_empty() {
            for (run, queue) in self.disabled_runs.iter_mut().zip(&self.queues) {
                *run = queue.run();
            }
            self.disables.append(&mut self.taken.device.disables);
            self.disables_until_ns = self.limit_ns();
            self.cx.waits.deadline(self.disables_until_ns);
        }
        self.take_mirror_change();
        self.take_queue_changes();
        self.take_rung();
        if std::mem::take(&mut self.taken.device.commanded) {
            for number in 0..COMMANDS {
                let Some((command, obligation)) = self.taken.device.commands[number].take() else { continue };
                debug_assert!(self.commands[number].is_none(), "a command is ignored while its number is busy");
                let row = number * self.queues.len();
                for (horizon, queue) in self.horizons[row..].iter_mut().zip(&self.queues) {
                    *horizon = queue.horizon(&self.cx);
                }
                self.take_up(number, Pending { command, obligation, until_ns: self.limit_ns() });
            }
        }
    }

    /// When something that begins now ends at the limit that COMMAND_LIMIT states, ns.
    fn limit_ns(&self) -> u64 {
        self.cx.now_ns.saturating_add(self.cx.shared.settings().page_request_timeout_ns)
    }

    /// A command is under way from now on.
    fn take_up(&mut self, number: usize, pending: Pending) {
        self.cx.waits.deadline(pending.until_ns);
        self.commands[number] = Some(pending);
        self.commands_pending |= 1 << number;
    }

    /// Resets the engine: no work is left. A page request that is outstanding stays outstanding until it is answered.
    fn reset(&mut self) {
        for queue in &mut self.queues {
            if !mutant!(ResetKeepsQueues) {
                queue.reset(&mut self.cx);
            }
        }
        self.schedule.clear();
        self.cx.requester.invalidate(Invalidation::ALL);
        // Nothing is written: the guest may have given the control block to somebody else.
        self.cx.requester.mirror_detach(false);
        self.commands_pending = 0;
        for command in &mut self.commands {
            if let Some(pending) = command.take() {
                self.cx.acknowledge(pending.obligation);
            }
        }
        while let Some(obligation) = self.disables.pop() {
            self.cx.acknowledge(obligation);
        }
        while let Some(obligation) = self.taken.device.mirror.offs.pop() {
            self.cx.acknowledge(obligation);
        }
        while let Some(obligation) = self.taken.device.resets.pop() {
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
                if let Some(waiter) = self.cx.waits.waiter(word * 64 + bit) {
                    self.queues[waiter.queue].answered(&mut self.cx, waiter.part);
                    self.schedule.activate(waiter.queue);
                }
            }
        }
    }

    /// Turns the mirror off, then on. With it off, what waits for its driver asks again, and is refused.
    fn take_mirror_change(&mut self) {
        self.taken.device.kicked = false;
        let gate = self.cx.endpoint().gate();
        if !self.taken.device.mirror.offs.is_empty() {
            for position in 0..self.queues.len() {
                let events = |wait: &svadev_endpoint::Wait| matches!(wait.reason, WaitFor::Event(_));
                if self.queues[position].end_waits(&mut self.cx, |_, wait| events(wait).then_some(Resume::Retry)) {
                    self.schedule.activate(position);
                }
            }
            self.cx.requester.mirror_detach(gate.bus_master);
            while let Some(obligation) = self.taken.device.mirror.offs.pop() {
                self.cx.acknowledge(obligation);
            }
        }
        if let Some((block, vector)) = self.taken.device.mirror.on.take() {
            self.cx.mirror_vector = vector;
            self.cx.requester.mirror_attach(block, gate);
        }
    }

    /// Goes on with what the mirror's driver has answered.
    fn take_mirror_answers(&mut self) -> bool {
        let mut answered = false;
        while let Some((waiter, code)) = self.cx.mirror_answer() {
            self.queues[waiter.queue].mirror_answered(&mut self.cx, waiter.part, code);
            self.schedule.activate(waiter.queue);
            answered = true;
        }
        answered
    }

    fn take_queue_changes(&mut self) {
        if !std::mem::take(&mut self.taken.device.queues_changed) {
            return;
        }
        for position in 0..self.queues.len() {
            let queue = &mut self.queues[position];
            let change = std::mem::take(&mut self.taken.device.queues[queue.number()]);
            if change.disable {
                queue.disable(&mut self.cx);
            }
            if let Some(config) = change.enable {
                queue.enable(&mut self.cx, config);
            }
            if change.disable || change.enable.is_some() {
                self.schedule.activate(position);
            }
        }
    }

    /// Looks again at queues whose wake page was written.
    fn take_rung(&mut self) {
        let all = std::mem::take(&mut self.taken.device.rung_all);
        if !all && self.taken.device.rung.iter().all(|&word| word == 0) {
            return;
        }
        let rung = std::mem::take(&mut self.taken.device.rung);
        for position in 0..self.queues.len() {
            let queue = &self.queues[position];
            let number = queue.number();
            if queue.is_on() && (all || rung[number / 64] >> (number % 64) & 1 == 1) {
                self.activate(position);
            }
        }
    }

    /// Ends waits whose time is up.
    fn expire(&mut self) -> bool {
        // Those that go on waiting put theirs in again.
        self.cx.waits.clear_deadlines();
        let mut changed = false;
        for position in 0..self.queues.len() {
            if self.queues[position].expire(&mut self.cx) {
                self.schedule.activate(position);
                changed = true;
            }
        }
        let disables = (!self.disables.is_empty()).then_some(self.disables_until_ns);
        for until_ns in self.commands.iter().flatten().map(|pending| pending.until_ns).chain(disables) {
            if self.cx.now_ns < until_ns {
                self.cx.waits.deadline(until_ns);
            }
        }
        changed
    }

    /// Raises the interrupts that have waited long enough.
    fn raise_delayed(&mut self) {
        let Some(delayed) = self.cx.take_delayed() else { return };
        for (word, mut bits) in delayed.into_iter().enumerate() {
            while bits != 0 {
                let bit = bits.trailing_zeros() as usize;
                bits &= bits - 1;
                self.queues[word * 64 + bit].interrupt(&mut self.cx);
            }
        }
    }

    /// Lets the next in line ask again, one at a time: the first that finds no room stops the line.
    fn move_line(&mut self) -> bool {
        let Some(waiter) = self.cx.waits.next_in_line() else { return false };
        self.queues[waiter.queue].move_up(&mut self.cx, waiter.part);
        self.schedule.activate(waiter.queue);
        true
    }

    /// Acknowledges what has come true meanwhile: queues that stopped, a command that is over.
    fn settle(&mut self) -> bool {
        let mut settled = false;
        if !self.disables.is_empty() && self.is_disabled() {
            while let Some(obligation) = self.disables.pop() {
                self.cx.acknowledge(obligation);
            }
            settled = true;
        }
        let mut pending = self.commands_pending;
        while pending != 0 {
            let number = pending.trailing_zeros() as usize;
            pending &= pending - 1;
            let Some(command) = self.commands[number].take() else { continue };
            if self.is_over(number, &command) {
                self.commands_pending &= !(1 << number);
                self.cx.acknowledge(command.obligation);
                settled = true;
            } else {
                self.commands[number] = Some(command);
            }
        }
        settled
    }

    /// Whether a disable of the function is over: each queue has been off, and the function's page requests are
    /// answered or over their limit. Software may take translations and page tables away after that.
    fn is_disabled(&self) -> bool {
        let mut queues = self.queues.iter().zip(&self.disabled_runs);
        queues.all(|(queue, &run)| queue.is_off() || queue.run() > run) && {
            let outstanding = self.cx.endpoint().prg().is_any_outstanding(self.cx.engine);
            let done = !outstanding || mutant!(DisableWithoutResponses);
            self.is_done_or_late(Done::Disable, self.disables_until_ns, done)
        }
    }

    /// An abort is over when the PASID's page requests are answered, too (PCIe 6.0 §10.4.1.2, the first of the two ways
    /// to stop using a PASID): whoever unbinds it next finds no request of it in any queue. A guest kernel may rely on
    /// that: Linux 7.3 skips its own drain when the process died first (`docs/found.md`).
    fn is_over(&mut self, number: usize, pending: &Pending) -> bool {
        let row = number * self.queues.len();
        let horizons = &self.horizons[row..row + self.queues.len()];
        match pending.command {
            Command::Drain(_) if mutant!(DrainCommandIgnored) => true,
            Command::Drain(pasid) => {
                let mut queues = self.queues.iter().zip(horizons);
                let drained = queues.all(|(queue, &until)| queue.is_drained(pasid, until));
                self.is_done_or_late(Done::Command(number), pending.until_ns, drained)
            }
            Command::Abort(pasid) => {
                let mut over = true;
                for (position, &until) in horizons.iter().enumerate() {
                    let aborting = self.queues[position].abort(&mut self.cx, pasid, until);
                    over &= aborting.over;
                    if aborting.changed {
                        self.schedule.activate(position);
                    }
                }
                let space = self.cx.requester.space(Some(pasid));
                self.cx.requester.invalidate(Invalidation::space(space));
                over && {
                    let outstanding = self.cx.endpoint().prg().is_outstanding(self.cx.engine, pasid);
                    let done = !outstanding || mutant!(AbortWithoutResponses);
                    self.is_done_or_late(Done::Command(number), pending.until_ns, done)
                }
            }
        }
    }

    /// Whether a command or a disable ends now. If it ends at its limit, says so.
    fn is_done_or_late(&self, what: Done, until_ns: u64, done: bool) -> bool {
        let late = !done && self.cx.now_ns >= until_ns;
        if late {
            self.cx.shared.timed_out(what);
        }
        done || late
    }
}

#[cfg(test)]
impl<P: Platform> Engine<P> {
    /// Lets a queue go on from another index, as after billions of descriptors.
    pub(crate) fn set_indexes(&mut self, position: usize, index: u64) {
        self.queues[position].set_indexes(index);
    }
}

impl<P: Platform> Drop for Engine<P> {
    /// An engine that is gone uses nothing any more: whoever waits for it is told so.
    fn drop(&mut self) {
        for queue in &mut self.queues {
            queue.reset(&mut self.cx);
        }
        let shared = Arc::clone(&self.cx.shared);
        let mut presence = std::mem::take(&mut self.presence);
        presence.leave(shared.endpoint().side(self.cx.engine), || {
            self.empty_mailbox();
            self.reset();
        });
    }
}
