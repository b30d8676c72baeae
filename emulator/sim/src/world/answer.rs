//! Answers to page request groups, and what may go wrong with them.
use svadev_fabric::{Pasid, ResponseCode};

use super::World;
use crate::coverage::Group as Count;
use crate::excuse;
use crate::mutant::Mutant;
use crate::process::{DATA, Process, Served};
use crate::task::{Kind, Task};
use crate::unit_driver::{Group, response};

/// Stage of an answer that was *failure*, when it is given.
const FAILED: u8 = 2;

impl World {
    pub(crate) fn answer_later(&mut self, group: Group) {
        let f = self.functions.iter().position(|f| f.bdf == group.bdf).expect("only functions ask");
        let (mut forced, mut delay, mut twice) = (None, 1, false);
        if self.injecting {
            if self.rng.chance(self.faults.delayed_answers) {
                delay = self.rng.within(1, 600);
                self.log.count(Count::Fault, "delayed_answers");
            }
            if self.rng.chance(self.faults.lost_answers) {
                self.lose(f, &group);
                return;
            }
            if self.rng.chance(self.faults.invalid_answers) {
                forced = Some(ResponseCode::InvalidRequest);
                self.log.count(Count::Fault, "invalid_answers");
            }
            if self.rng.chance(self.faults.failed_answers) {
                forced = Some(ResponseCode::Failure);
                self.log.count(Count::Fault, "failed_answers");
            }
            twice = self.rng.chance(self.faults.duplicated_answers);
            self.log.add(Count::Fault, "duplicated_answers", twice.into());
        }
        let until = self.step + delay;
        self.tasks.push(Task { until, ..Task::new(Kind::Answer { f, group, forced, twice }) });
    }

    /// Nobody will answer the group. Whoever waits for its pages waits in vain; others only where it took the last
    /// share of the allocation.
    fn lose(&mut self, f: usize, group: &Group) {
        self.log.event(format_args!("group {} of {} is lost", group.index.get(), group.bdf));
        self.log.count(Count::Fault, "lost_answers");
        self.bus.tap().lose(group.bdf, group.index);
        self.functions[f].lost_groups += 1;
        let pages: Vec<_> = group.requests.iter().filter_map(|r| Process::page_at(r.iova)).collect();
        self.excuse_pages(f, group.pasid, &pages, excuse::TIMEOUT);
        if self.functions[f].is_starved() {
            self.excuse_function(f, excuse::TIMEOUT);
        }
    }

    pub(super) fn poll_answer(&mut self, task: &mut Task) -> bool {
        let Kind::Answer { f, group, forced, twice } = &mut task.kind else { unreachable!("of this kind") };
        let f = *f;
        if task.stage > 0 {
            if task.stage == FAILED {
                let until = self.step + self.rng.within(1, 300);
                self.tasks.push(Task { until, ..Task::new(Kind::Revive { f }) });
            }
            return true;
        }
        let p = group.pasid.and_then(|pasid| self.process_of(f, pasid));
        let mut code = ResponseCode::Success;
        for request in &group.requests {
            let page = Process::page_at(request.iova);
            let served = match (p, page) {
                (Some(p), Some(page)) => self.processes[p].fault_in(&mut self.frames, page, request.write),
                _ => Served::Never,
            };
            match served {
                Served::Yes => {}
                Served::Busy => {
                    let (p, page) = p.zip(page).expect("it is a page of a process");
                    self.processes[p].pages[page].wanted = true;
                    task.until = self.step + 5;
                    return false;
                }
                Served::Never => code = ResponseCode::InvalidRequest,
            }
        }
        let code = forced.unwrap_or(code);
        let mut descriptors = vec![response(group, code)];
        if *twice || (self.mutant == Some(Mutant::AnswerTwice) && group.index.get() % 8 == 7) {
            descriptors.push(descriptors[0]);
            if *twice {
                self.bus.tap().expect_duplicate(group.bdf, group.index);
            }
        }
        let Some(waiting) = self.unit.submit(&descriptors, false) else { return false };
        task.waiting = Some(waiting);
        match code {
            ResponseCode::Success => {}
            ResponseCode::InvalidRequest => {
                let pages: Vec<_> = group.requests.iter().filter_map(|r| Process::page_at(r.iova)).collect();
                let pasid = group.pasid;
                self.excuse_pages(f, pasid, &pages, excuse::FAULT);
            }
            ResponseCode::Failure => {
                // Until page requests are enabled again, which must come after the answer: that may wait in a parked
                // queue.
                self.functions[f].failing += 1;
                self.excuse_function(f, excuse::FAILED);
                task.stage = FAILED - 1;
            }
        }
        false
    }

    /// These pages were refused, or nobody answers for them: whoever needs them may fail with `what`; a queue whose
    /// rings or lists they are may halt.
    fn excuse_pages(&mut self, f: usize, pasid: Option<Pasid>, refused: &[usize], what: u8) {
        // A dying process's work may still wait for an answer.
        let Some(p) = pasid.and_then(|pasid| self.processes.iter().position(|p| p.pasid == pasid)) else { return };
        let process = (p, self.processes[p].id);
        let shared = refused.iter().any(|&page| page < DATA);
        for flight in self.flights.values_mut().filter(|flight| flight.process == process && flight.queue.0 == f) {
            if shared || flight.pages().any(|page| refused.contains(&page)) {
                flight.excuses |= what;
            }
            if shared {
                flight.excuses |= excuse::DROPPED | excuse::ABORTED;
            }
        }
    }
}
