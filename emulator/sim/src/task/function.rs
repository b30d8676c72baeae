//! Resets of functions, and queues that stop and start again.
use super::{Kind, Task};
use crate::checker::Checker;
use crate::coverage::Group;
use crate::flight::excuse;
use crate::functions::{KERNEL_QUEUES, QUEUES};
use crate::process::Life;
use crate::world::World;

impl World {
    pub(crate) fn reset_function(&mut self, f: usize) {
        if !self.functions[f].resetting {
            self.log.event(format_args!("reset of {f}"));
            self.log.count(Group::Fault, "reset");
            let function = &mut self.functions[f];
            function.resetting = true;
            let resets = function.ports.resets();
            let way = self.rng.below(3);
            if function.reset_by(way) {
                // Who waited for these is gone with the connection.
                self.memory_tokens[f].clear();
            }
            self.excuse(excuse::DROPPED, |flight| flight.queue.0 == f);
            self.tasks.push(Task::new(Kind::Reset { f, resets }));
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

    pub(super) fn poll_reset(&mut self, f: usize, resets: u64) -> bool {
        let now = self.functions[f].ports.resets();
        if now == resets {
            return false;
        }
        self.log.check(Checker::ResetAndRelease, now == resets + 1, || {
            format!("function {f} says {} times that a reset is over", now - resets)
        });
        self.drop_flights(|flight| flight.queue.0 == f);
        let function = &mut self.functions[f];
        let busy = function.is_busy();
        self.log.check(Checker::ResetAndRelease, !busy, || format!("function {f} is busy after its reset"));
        function.resetting = false;
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
