//! Resets of functions, and queues that stop and start again.
use super::World;
use crate::checker::Checker;
use crate::coverage::Group;
use crate::excuse;
use crate::process::Life;
use crate::queues::{KERNEL_QUEUES, QUEUES};
use crate::task::{Kind, Task};

impl World {
    pub(crate) fn reset_function(&mut self, f: usize) {
        if !self.functions[f].resetting {
            self.log.event(format_args!("reset of {f}"));
            self.log.count(Group::Fault, "reset");
            self.functions[f].resetting = true;
            self.excuse(excuse::DROPPED, |flight| flight.queue.0 == f);
            let mut task = Task::new(Kind::Reset { f, begun: false });
            // Some drivers turn bus mastering off first, and wait for a while.
            if self.rng.chance(300) {
                self.functions[f].stop_bus_mastering();
                self.log.count(Group::Path, "bus mastering off before a reset");
                task.until = self.step + self.rng.within(1, 100);
            }
            self.poll_reset(&mut task);
            self.tasks.push(task);
        }
    }

    /// Begins a reset of a function, by any way.
    fn begin_reset(&mut self, f: usize) {
        if !self.functions[f].vmm.is_bus_master() && self.functions[f].vmm.has_vectors() && self.rng.chance(500) {
            self.functions[f].start_bus_mastering();
            self.log.count(Group::Path, "bus mastering on again before a reset");
        }
        let (way, q) = (self.rng.below(3), self.rng.index(QUEUES));
        if self.functions[f].vmm.is_bus_master() && self.rng.chance(300) && !self.functions[f].vmm.is_masked(q) {
            // A mask does not outlive the reset of its function, or its connection.
            self.functions[f].vmm.mask(u32::try_from(q).expect("few queues"));
        }
        self.log.event(format_args!("{f} is reset by way {way}"));
        if self.functions[f].reset_by(way) {
            // The connection has ended, and with it the waits for these.
            self.memory_tokens[f].clear();
        }
    }

    /// An engine had a turn. If it was to act on a reset and others still are, the reset may be asked for once more.
    pub(super) fn reset_again(&mut self, f: usize) {
        let function = &mut self.functions[f];
        if function.resets_left > 0 && function.is_busy() && self.rng.chance(500) {
            function.resets_left -= 1;
            self.log.count(Group::Path, "reset during a reset");
            self.begin_reset(f);
        }
    }

    /// The vector of a queue is masked for a while.
    pub(crate) fn mask_vector(&mut self, f: usize, q: usize) {
        let function = &mut self.functions[f];
        if !function.resetting && !function.vmm.is_masked(q) {
            self.log.event(format_args!("mask {f}.{q}"));
            self.log.count(Group::Fault, "mask");
            function.vmm.mask(u32::try_from(q).expect("few queues"));
            let until = self.step + self.rng.within(1, 300);
            self.tasks.push(Task { until, ..Task::new(Kind::Unmask { f, q }) });
        }
    }

    pub(crate) fn restart_queue(&mut self, f: usize, q: usize) {
        let function = &mut self.functions[f];
        // A queue that its engine has never seen enabled is disabled without a word for what is in its ring already.
        let seen = q >= KERNEL_QUEUES || function.queues[q].head > 0;
        if function.queues[q].on && seen && !function.resetting {
            self.log.event(format_args!("disable {f}.{q}"));
            self.log.count(Group::Fault, "disable");
            // Of a user queue the rings may be away when it stops; a kernel queue completes all it has.
            let user = function.queues[q].user.is_some();
            let halted = function.queue_status(q).halted();
            function.disable(q);
            let reasons = if user || halted { excuse::ABORTED | excuse::DROPPED } else { excuse::ABORTED };
            self.excuse(reasons, |flight| flight.queue == (f, q));
            self.tasks.push(Task::new(Kind::Restart { f, q }));
        }
    }

    /// Queues that halted are started again, if they had a reason to.
    pub(crate) fn watch_queue(&mut self, f: usize, q: usize) {
        let function = &mut self.functions[f];
        if function.resetting || !function.queues[q].on || !function.queue_status(q).halted() {
            return;
        }
        let status = function.queue_status(q);
        self.log.event(format_args!("{f}.{q} halted: {status:?}"));
        self.log.count(Group::Path, "queue halted");
        self.log.check(Checker::Reason, q >= KERNEL_QUEUES, || format!("kernel queue {f}.{q} halted: {status:?}"));
        self.reap(f, q);
        self.restart_queue(f, q);
    }

    pub(super) fn poll_reset(&mut self, task: &mut Task) -> bool {
        let Kind::Reset { f, begun } = &mut task.kind else { unreachable!("of this kind") };
        let f = *f;
        if task.until > self.step {
            return false;
        }
        if !std::mem::replace(begun, true) {
            self.functions[f].resets_left = self.rng.pick(&[0, 1, 2]);
            self.begin_reset(f);
            return false;
        }
        let function = &mut self.functions[f];
        if function.is_busy() || function.vmm.is_resetting() {
            return false;
        }
        self.drop_flights(|flight| flight.queue.0 == f);
        let function = &mut self.functions[f];
        (function.resetting, function.resets_left) = (false, 0);
        function.vmm.check_nothing_is_pending();
        function.bring_up();
        for q in 0..QUEUES {
            let queue = self.functions[f].queues[q];
            self.functions[f].queues[q].on = false;
            match queue.user {
                None if q < KERNEL_QUEUES => self.enable_kernel_queue(f, q),
                Some(pasid) if self.processes.iter().any(|p| p.pasid == pasid && p.life == Life::Alive) => {
                    self.enable_queue(f, q, Some(pasid), queue.rings);
                }
                // The ring keeps what the reset left in it: nobody reads it again.
                _ => self.functions[f].queues[q].rings = (0, 0),
            }
        }
        true
    }

    pub(super) fn poll_restart(&mut self, f: usize, q: usize) -> bool {
        if self.functions[f].resetting {
            return false;
        }
        if self.functions[f].queues[q].on {
            return true;
        }
        self.reap(f, q);
        let status = self.functions[f].queue_status(q);
        if status.enabled() || status.halted() {
            return false;
        }
        self.reap(f, q);
        self.drop_flights(|flight| flight.queue == (f, q));
        match self.functions[f].queues[q].user {
            None if q < KERNEL_QUEUES => self.enable_kernel_queue(f, q),
            Some(pasid) if self.processes.iter().any(|p| p.pasid == pasid && p.life == Life::Alive) => {
                let rings = self.functions[f].queues[q].rings;
                self.enable_queue(f, q, Some(pasid), rings);
            }
            _ => {}
        }
        true
    }
}
