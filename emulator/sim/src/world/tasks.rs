//! One step of a task, and the invalidations that tasks submit.
use super::World;
use crate::mutant::Mutant;
use crate::task::{Change, Kind, Remap, Task};
use crate::unit_driver::{Descriptor, device_tlb_pages, iotlb_pages};

/// Changes of so many pages or more are of a large one.
pub(super) const LARGE_ORDER: u8 = 9;

impl World {
    /// One step of a task; whether it is over.
    pub(crate) fn poll(&mut self, task: &mut Task) -> bool {
        if let Some(waiting) = &task.waiting {
            if !self.unit.is_done(waiting) {
                return false;
            }
            task.waiting = None;
            task.stage += 1;
        }
        match &mut task.kind {
            Kind::Map(_) => self.poll_map(task),
            Kind::Answer { .. } => self.poll_answer(task),
            Kind::TearDown { .. } => self.poll_tear_down(task),
            Kind::Reset { .. } => self.poll_reset(task),
            &mut Kind::Unmask { f, q } => {
                if !self.functions[f].resetting && self.functions[f].vmm.is_masked(q) {
                    self.functions[f].vmm.unmask(u32::try_from(q).expect("few queues"));
                }
                true
            }
            &mut Kind::Restart { f, q } => self.poll_restart(f, q),
            &mut Kind::Revive { f } => {
                self.functions[f].failing -= 1;
                if !self.functions[f].resetting {
                    self.functions[f].restart_page_requests(false);
                }
                true
            }
        }
    }

    /// Submits and waits; the stage goes on when it is over. Tried again where there is no room.
    pub(super) fn submit(&mut self, task: &mut Task, descriptors: &[Descriptor], drain: bool) {
        if self.mutant == Some(Mutant::BadDescriptor) && self.step % 16 == 7 {
            let damaged: Vec<_> = descriptors.iter().map(|&[low, high]| [low, high | 1 << 11]).collect();
            task.waiting = self.unit.submit(&damaged, drain);
            return;
        }
        task.waiting = self.unit.submit(descriptors, drain);
    }

    /// The invalidations for a change: of the unit once, of each function's device TLB.
    pub(super) fn invalidations(&self, remap: &Remap) -> Vec<Descriptor> {
        let process = &self.processes[remap.p];
        let small = self.mutant == Some(Mutant::SmallInvalidation) && remap.order >= LARGE_ORDER;
        let (address, order) = (remap.start(), if small { 0 } else { remap.order });
        let bound = (0..self.functions.len()).filter(|&f| process.bound[f]);
        let mut all: Vec<_> =
            bound.map(|f| device_tlb_pages(self.functions[f].bdf, process.pasid, address, order)).collect();
        if !all.is_empty() && self.mutant != Some(Mutant::SkipIotlb) {
            // The hint is that no table but the last was changed.
            let hint = self.mutant == Some(Mutant::LeafOnly) && remap.change == Change::Collapse;
            all.insert(0, iotlb_pages(process.domain_id, process.pasid, (address, order), hint));
        }
        all
    }
}
