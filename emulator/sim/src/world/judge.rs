//! When nothing is under way any more: whether it is so, and whether all is as it must be.
use std::collections::BTreeSet;

use super::World;
use crate::checker::Checker;
use crate::excuse;
use crate::frames::FRAME_BYTES;
use crate::process::{DATA, Life, PAGES};

impl World {
    /// What was lost for good is forgotten on both sides, as a kernel does that gives up on a function's page
    /// requests.
    pub(super) fn forget_lost_groups(&mut self) {
        for function in &mut self.functions {
            if function.resetting {
                continue;
            }
            self.bus.tap().forget_groups(function.bdf);
            function.restart_page_requests(true);
            function.lost_groups = 0;
        }
        // Whoever waited for an answer is told *failure*.
        for f in 0..self.functions.len() {
            self.excuse_function(f, excuse::FAILED);
        }
    }

    pub(super) fn is_quiet(&mut self) -> bool {
        self.flights.is_empty()
            && self.tasks.is_empty()
            && self.bus.tap().unanswered(None) == 0
            && self.outstanding_invalidations() == 0
            && self.unit.is_idle()
            && self.unit.no_page_requests()
            && self.memory_tokens.iter().all(BTreeSet::is_empty)
            && self.functions.iter_mut().all(|function| function.vmm.is_quiet())
    }

    /// A phase ended within its bound, or not.
    pub(super) fn expect_end(&mut self, ended: bool, phase: &str) {
        if self.log.has_failed() {
            return;
        }
        if ended {
            self.log.check(Checker::Liveness, true, String::new);
            return;
        }
        let flights: Vec<_> = self.flights.keys().take(8).collect();
        let tasks: Vec<_> = self.tasks.iter().take(8).collect();
        let what = format!(
            "{phase} does not end: flights {flights:?}, tasks {tasks:?}, {} groups, {} invalidations, memory {:?}, queues idle: {} {}",
            self.bus.tap().unanswered(None),
            self.outstanding_invalidations(),
            self.memory_tokens,
            self.unit.is_idle(),
            self.unit.no_page_requests(),
        );
        self.log.fail(Checker::Liveness, what);
    }

    /// The unit's fault records: each is of somebody whose tables went.
    pub(super) fn judge_faults(&mut self) {
        for fault in self.unit.take_faults() {
            let expected = fault.pasid.is_some_and(|pasid| self.may_fault.contains(&pasid));
            self.log.check(Checker::UnitFaults, expected, || format!("{fault:x?} without a reason"));
        }
    }

    /// With nothing under way: memory is what it must be, and nobody wrote where nothing is mapped.
    pub(super) fn verify(&mut self) {
        if self.log.has_failed() {
            return;
        }
        self.judge_faults();
        self.frames.verify_all();
        for process in self.processes.iter_mut().filter(|p| p.life == Life::Alive) {
            for page in 0..PAGES {
                process.thaw(page);
                let want = &process.oracle[page * FRAME_BYTES..][..FRAME_BYTES];
                let same = page < DATA || process.contents(page)[..] == *want;
                self.log.check(Checker::Bytes, same, || {
                    format!("page {page} of process {} is not what it must be", process.id)
                });
            }
            let idle = process.pages.iter().all(|page| page.readers == 0 && page.writers == 0 && !page.busy);
            assert!(idle, "the world's own books are in order");
        }
        for function in &self.functions {
            let c = function.shared().counters();
            let answers = c.responses_success + c.responses_invalid + c.responses_failure;
            self.log.check(Checker::OneResponse, answers <= c.groups, || {
                format!("{answers} answers for {} groups", c.groups)
            });
        }
        self.log.event(format_args!("verified"));
    }
}
