//! What happens by chance in the first phase.
use super::{PROCESSES, World};
use crate::coverage::Group;
use crate::process::{DATA, LIST_PAGE, PAGES};
use crate::queues::QUEUES;
use crate::rng::Rng;

impl World {
    /// Faults and changes of this step.
    pub(super) fn inject(&mut self) {
        if self.rng.chance(120) {
            self.submit_work();
        }
        let p = self.rng.index(PROCESSES);
        let f = self.rng.index(self.functions.len());
        let faults = self.faults;
        let mut happens = |rate| self.rng.chance(rate);
        let (evict, migrate, protect, unmap) =
            (happens(faults.evict), happens(faults.migrate), happens(faults.protect), happens(faults.unmap));
        let collapse = happens(faults.collapse);
        // These end much at once: a tenth of their rate is plenty.
        let rare = |happened: bool, rng: &mut Rng| happened && rng.chance(300);
        let (memory, disable) = (happens(faults.memory_change), happens(faults.disable));
        let (restart, mask) = (happens(faults.unit_restart), happens(faults.mask));
        let hand_over = happens(faults.hand_over);
        let (reset, unbind, exit) = (happens(faults.reset), happens(faults.unbind), happens(faults.exit));
        let (reset, unbind, exit) =
            (rare(reset, &mut self.rng), rare(unbind, &mut self.rng), rare(exit, &mut self.rng));
        if evict {
            self.evict(p);
        }
        if migrate {
            self.migrate(p);
        }
        if protect {
            self.protect(p);
        }
        if unmap {
            self.unmap(p);
        }
        if collapse {
            self.collapse(p);
        }
        if memory {
            self.change_memory(f);
        }
        if disable {
            let q = self.rng.index(QUEUES);
            self.restart_queue(f, q);
        }
        if hand_over {
            self.log.count(Group::Fault, "hand_over");
            self.hand_over();
        }
        if mask {
            let q = self.rng.index(QUEUES);
            self.mask_vector(f, q);
        }
        if reset && self.rng.chance(250) {
            // A reset of the bus: no function may master it, and the unit's interrupts have to wait.
            self.log.count(Group::Path, "every function reset");
            (0..self.functions.len()).for_each(|f| self.reset_function(f));
        } else if reset {
            self.reset_function(f);
        }
        if restart {
            self.restart_unit();
        }
        if unbind || exit {
            self.tear_down(p, exit);
        }
    }

    fn change_memory(&mut self, f: usize) {
        let token = self.next_token;
        self.next_token += 1;
        self.log.count(Group::Fault, "memory_change");
        self.log.event(format_args!("memory change {token} of {f}"));
        self.memory_tokens[f].insert(token);
        self.functions[f].vmm.change_memory(token);
    }

    /// The first free page among those that descriptors work on, and rings and lists too.
    pub(crate) fn any_page(&mut self) -> usize {
        if self.rng.chance(200) { self.rng.index(LIST_PAGE + 1) } else { DATA + self.rng.index(PAGES - DATA) }
    }

    /// What a kernel may do to the unit at any time, without any work noticing.
    fn restart_unit(&mut self) {
        self.log.count(Group::Fault, "unit_restart");
        match self.rng.below(3) {
            0 => {
                let old = self.device_tables.move_root(&mut self.frames);
                self.unit.set_root(self.device_tables.root());
                self.frames.free(old);
                self.log.event(format_args!("the root table moved"));
                self.log.count(Group::Path, "root table moved");
            }
            1 => {
                if self.unit.restart_queue() {
                    self.log.event(format_args!("the invalidation queue starts over"));
                    self.log.count(Group::Path, "invalidation queue restarted");
                }
            }
            _ => {
                self.take_page_requests();
                self.unit.restart_page_requests();
                self.log.event(format_args!("the page request queue starts over"));
                self.log.count(Group::Path, "page request queue restarted");
            }
        }
    }
}
