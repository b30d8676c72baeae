//! The machine is saved, dropped and made again from what was saved: nobody who uses it may notice.
use std::fmt::Debug;
use std::sync::Arc;

use super::build::make_machine;
use super::{STEP_NS, World};
use crate::checker::Checker;
use crate::coverage::Group;
use crate::mutant::Mutant;
use crate::platform::Simulated;

impl World {
    /// Replaces the machine by one that was restored from its state.
    pub(super) fn hand_over(&mut self) {
        self.log.event(format_args!("the machine is saved and restored"));
        self.log.count(Group::Path, "machine saved and restored");
        // All of them before the first is saved: what one does on the way may reach another by way of the unit.
        let now_ns = self.step * STEP_NS;
        self.functions.iter_mut().for_each(|function| function.pause(now_ns));
        let states: Vec<_> = self.functions.iter().map(|function| function.save()).collect();
        let unit = self.unit.save();
        let mut platform = Simulated::new(Arc::clone(&self.ram), Arc::clone(&self.log), self.mutant);
        let watch = self.bus.tap().clone();
        let mut machine = make_machine(&self.machine_config, &mut platform, watch, &self.log);
        if self.mutant != Some(Mutant::RestoreForgetsUnit) {
            machine.iommu.restore(&unit);
        }
        self.check_restored("the unit", &unit, &machine.iommu.save());
        self.bus = Arc::clone(&machine.bus);
        let mut restored = Vec::new();
        for ((function, state), mut new) in self.functions.iter_mut().zip(&states).zip(machine.functions) {
            new.device.restore(&mut new.engines, state);
            restored.push((format!("function {}", function.bdf), new.device.save(&new.engines)));
            function.replace(new, platform.maps(function.bdf));
        }
        for ((who, again), state) in restored.iter().zip(&states) {
            self.check_restored(who, state, again);
        }
        let maps = platform.maps(self.machine_config.iommu);
        self.unit.replace(Arc::clone(&machine.bus), machine.iommu, machine.iommu_server, maps);
    }

    fn check_restored(&self, who: &str, saved: &impl Debug, restored: &impl Debug) {
        let (saved, restored) = (format!("{saved:?}"), format!("{restored:?}"));
        self.log.check(Checker::HandOver, saved == restored, || {
            let at = saved.bytes().zip(restored.bytes()).position(|(a, b)| a != b).unwrap_or_default();
            let part = |text: &str| text.chars().skip(at.saturating_sub(80)).take(160).collect::<String>();
            format!("{who} is restored as …{}… and was saved as …{}…", part(&restored), part(&saved))
        });
    }
}
