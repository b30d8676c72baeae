//! The end of a process, in either order: its memory first, or its driver first.
use svadev_fabric::Pasid;

use super::World;
use crate::checker::Checker;
use crate::coverage::Group;
use crate::excuse;
use crate::mutant::Mutant;
use crate::process::{LARGE, Life, Place};
use crate::queues::{KERNEL_QUEUES, QUEUES};
use crate::task::{Kind, Task};
use crate::unit_driver::pasid_gone;
use crate::watch::stop_marker;

impl World {
    pub(crate) fn tear_down(&mut self, p: usize, exit: bool) {
        if self.processes[p].life == Life::Alive {
            let process = &mut self.processes[p];
            process.life = Life::Dying;
            let id = process.id;
            self.log.event(format_args!("process {id} {}", if exit { "dies" } else { "is unbound" }));
            self.log.count(Group::Fault, if exit { "exit" } else { "unbind" });
            let reasons = excuse::ABORTED | excuse::FAULT | excuse::BLOCKED | excuse::DROPPED;
            self.excuse(reasons, |flight| flight.process == (p, id));
            self.tasks.push(Task::new(Kind::TearDown { p, exit, f: 0, resets: 0 }));
        }
    }

    pub(super) fn poll_tear_down(&mut self, task: &mut Task) -> bool {
        let Kind::TearDown { p, exit, f, resets } = &mut task.kind else { unreachable!("of this kind") };
        let (p, exit) = (*p, *exit);
        let (pasid, domain_id) = (self.processes[p].pasid, self.processes[p].domain_id);
        let skip = self.mutant == Some(Mutant::SkipDrain);
        match task.stage {
            // 0 to 2: release, from exit_mmap(): before the driver knows (L4).
            0 if !exit => task.stage = if skip { 7 } else { 3 },
            0 | 7 => {
                if self.processes[p].pages.iter().all(|page| !page.busy) {
                    // Linux sets FPD (`intel_pasid_tear_down_entry()`); whoever does not hears of each blocked request.
                    let quiet = exit && self.rng.chance(700);
                    if exit && !quiet {
                        self.may_fault.insert(pasid);
                    }
                    for function in &self.functions {
                        self.device_tables.clear_pasid(&mut self.frames, function.bdf, pasid, quiet);
                    }
                    task.stage += 1;
                }
            }
            1 | 8 => {
                let bdfs: Vec<_> = self.functions.iter().map(|function| function.bdf).collect();
                let all: Vec<_> = bdfs.into_iter().flat_map(|bdf| pasid_gone(bdf, domain_id, pasid)).collect();
                self.submit(task, &all, false);
            }
            2 => {
                self.release(p);
                task.stage = if skip { 10 } else { 3 };
            }
            // 3, 4: the driver stops its functions one by one.
            3 => {
                if *f == self.functions.len() {
                    task.stage = 5;
                    return false;
                }
                let function = &mut self.functions[*f];
                if !function.resetting && !function.command_taken {
                    function.command_taken = true;
                    *resets = function.vmm.resets();
                    if self.mutant != Some(Mutant::SkipAbort) {
                        function.abort(pasid);
                    }
                    task.stage = 4;
                }
            }
            4 => {
                let function = &mut self.functions[*f];
                if !function.resetting && !function.is_command_busy() {
                    function.command_taken = false;
                    let bdf = function.bdf;
                    task.stage = 3;
                    // A reset ends commands, too: then the abort is done again.
                    if function.vmm.resets() == *resets {
                        self.log.event(format_args!("PASID {pasid} of {bdf} is aborted"));
                        self.bus.tap().stop(bdf, pasid);
                        if self.rng.chance(300) {
                            stop_marker(&self.bus, bdf, pasid);
                        }
                        let left = self.bus.tap().unanswered(Some((bdf, pasid)));
                        // It waits for answers as long as it has patience: where some never come, it may leave others.
                        let late = self.bus.tap().has_lost(bdf, pasid);
                        self.log.check(Checker::PasidReuse, left == 0 || late, || {
                            format!("ABORT_PASID {pasid} of {bdf} ended with {left} groups unanswered")
                        });
                        *f += 1;
                    }
                }
            }
            // 5, 6: its queues go.
            5 => {
                for f in 0..self.functions.len() {
                    for q in KERNEL_QUEUES..QUEUES {
                        let queue = self.functions[f].queues[q];
                        if queue.user == Some(pasid) && queue.on && !self.functions[f].resetting {
                            self.reap(f, q);
                            self.functions[f].disable(q);
                        }
                    }
                }
                task.stage = 6;
            }
            6 => {
                if self.queues_are_off(p, pasid) {
                    task.stage = if exit { 10 } else { 7 };
                }
            }
            9 => {
                self.release(p);
                task.stage = 10;
            }
            // 10 to 12: drain, and unbind.
            10 => {
                let answering = self
                    .tasks
                    .iter()
                    .any(|t| matches!(&t.kind, Kind::Answer { group, .. } if group.pasid == Some(pasid)));
                if skip || (!answering && self.unit.no_page_requests()) {
                    task.stage = 11;
                }
            }
            11 => {
                let bdfs: Vec<_> = self.functions.iter().map(|function| function.bdf).collect();
                let all: Vec<_> = bdfs.into_iter().flat_map(|bdf| pasid_gone(bdf, domain_id, pasid)).collect();
                self.submit(task, &all[1..], true);
                self.log.count(Group::Path, "page requests drained");
            }
            _ => {
                self.unbind(p, pasid);
                return true;
            }
        }
        false
    }

    /// Whether the queues of a dying process are off; what they still had is gone then.
    fn queues_are_off(&mut self, p: usize, pasid: Pasid) -> bool {
        let mut off = true;
        for f in 0..self.functions.len() {
            for q in KERNEL_QUEUES..QUEUES {
                if self.functions[f].queues[q].user != Some(pasid) {
                    continue;
                }
                let busy =
                    self.tasks.iter().any(|t| matches!(t.kind, Kind::Restart { f: g, q: r } if (f, q) == (g, r)));
                let function = &mut self.functions[f];
                if function.queues[q].on && !function.resetting {
                    function.disable(q);
                }
                let status = function.queue_status(q);
                if function.resetting || busy || status.enabled() || status.halted() {
                    off = false;
                    continue;
                }
                if self.processes[p].life != Life::Dead {
                    self.reap(f, q);
                }
                self.drop_flights(|flight| flight.queue == (f, q));
                self.functions[f].queues[q].user = None;
            }
        }
        off
    }

    /// The process's memory goes.
    fn release(&mut self, p: usize) {
        // Kernel queues may still have descriptors of it, which will end as aborted; what they did no longer matters.
        let process = &mut self.processes[p];
        if let Some(large) = process.large.take() {
            self.frames.free_large(large.size_log2, large.frame);
            process.pages[LARGE..].iter_mut().for_each(|page| page.place = Place::Out);
        }
        for page in &mut process.pages {
            if let Place::Frame(frame) = page.place {
                page.place = Place::Out;
                self.frames.free(frame);
            }
        }
        if let Some(tables) = process.tables.take() {
            tables.free(&mut self.frames);
        }
        process.life = Life::Dead;
        self.log.event(format_args!("the memory of process {} is gone", process.id));
    }

    /// The PASID is free, and a new process comes.
    fn unbind(&mut self, p: usize, pasid: Pasid) {
        for function in &self.functions {
            let left = self.bus.tap().unanswered(Some((function.bdf, pasid)));
            let late = self.bus.tap().has_lost(function.bdf, pasid);
            self.log.check(Checker::PasidReuse, left == 0 || late, || {
                format!("PASID {pasid} is reused with {left} groups unanswered")
            });
        }
        self.log.event(format_args!("unbind PASID {pasid}"));
        self.log.count(Group::Path, "PASID used again");
        let domain_id = self.processes[p].domain_id;
        self.pasids.push((pasid, domain_id));
        let process = self.make_process();
        self.processes[p] = process;
        self.bind(p);
    }
}
