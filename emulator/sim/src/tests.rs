//! Fixed seeds, the same seed twice, and bugs on purpose.
use std::sync::Arc;

use svadev_accelerator::FunctionSettings;
use svadev_fabric::testing::Silent;
use svadev_fabric::{Access, Bdf, Iova, Pasid, Translation, TranslationRequest};
use svadev_host::{Machine, MachineConfig};
use svadev_iommu::{Unit, UnitConfig};
use svadev_memory::Ram;
use svadev_spec::pcie;
use svadev_spec::vtd::registers::{Global, offset};

use crate::batch::Batch;
use crate::frames::{FRAME, Frames};
use crate::log::Log;
use crate::platform::Simulated;
use crate::rng::Rng;
use crate::tables::{DeviceTables, PageTables};
use crate::unit_function::UnitFunction;
use crate::vmm::{Parts, Vmm, msi};
use crate::watch::Watcher;
use crate::{Caching, Checker, Mutant, Options, run};

/// Seeds that between them reach everything that worlds are made to reach.
const FIXED: Batch = Batch { start: 1, seeds: 60, jobs: 2, mutant: None, caching: None, twice: false };

#[test]
fn fixed_seeds_are_clean_and_reach_everything() {
    let totals = FIXED.run(|_| ());
    assert_eq!(totals.failure, None);
    let missing = totals.coverage.missing();
    assert!(missing.is_empty(), "never happened: {missing:?}\n{}", totals.coverage);
    // The worlds are not idle: about 200 descriptors each, and half as many groups.
    assert!(
        totals.completed > 6000 && totals.groups > 2400,
        "{} descriptors, {} groups",
        totals.completed,
        totals.groups
    );
}

/// Each way of caching takes the seeds of the others.
#[test]
fn every_caching_mode_is_clean() {
    for caching in [Caching::None, Caching::Strict, Caching::Adversarial] {
        let totals = Batch { start: 200, seeds: 12, caching: Some(caching), ..FIXED }.run(|_| ());
        assert_eq!(totals.failure, None, "{caching:?}");
    }
}

/// Seeds that found bugs. The worlds have grown since, so that these are ordinary seeds now; the bugs have tests of
/// their own.
#[test]
fn seeds_that_found_something_are_clean() {
    for seed in [260, 266, 284, 330, 367, 865, 2169, 2927, 3102, 4477, 911_088_485] {
        assert_eq!(run(seed, Options::default()).failure, None, "seed {seed}");
    }
}

#[test]
fn a_seed_has_one_story() {
    let totals = Batch { start: 100, seeds: 8, twice: true, ..FIXED }.run(|_| ());
    assert_eq!(totals.failure, None);
    let mut hashes: Vec<_> = (100..105).map(|seed| run(seed, Options::default()).hash).collect();
    hashes.sort_unstable();
    hashes.dedup();
    assert_eq!(hashes.len(), 5, "different seeds have different stories");
}

/// The checkers are worth something: every planted bug is seen within a few seeds, and first by a checker of its own.
#[test]
fn every_mutant_is_caught_by_its_checkers() {
    let mut wrong = Vec::new();
    for &mutant in Mutant::ALL {
        let seen = Batch { seeds: 300, mutant: Some(mutant), ..FIXED }.run(|_| ()).failure;
        let checker = seen.as_ref().and_then(|(_, ended)| ended.checker());
        if !checker.is_some_and(|checker| mutant.caught_by().contains(&checker)) {
            wrong.push((mutant, seen));
        }
    }
    assert!(wrong.is_empty(), "not caught by their checkers: {wrong:#?}");
}

/// A planted bug for each checker.
#[test]
fn every_checker_has_a_mutant() {
    let named = |checker: &Checker| Mutant::ALL.iter().any(|mutant| mutant.caught_by().contains(checker));
    let unproven: Vec<_> = Checker::ALL.iter().filter(|&checker| !named(checker)).collect();
    assert!(unproven.is_empty(), "{unproven:?}");
}

/// What the builder builds is what the unit walks: pages of every size, in tables of either depth.
#[test]
fn the_unit_finds_what_the_builder_maps() {
    let (bdf, pasid) = (Bdf(0x00a1), Pasid::new(70).unwrap());
    for levels in [4, 5] {
        let ram = Arc::new(Ram::new(8 << 20).unwrap());
        let mut frames = Frames::new(Arc::clone(&ram), Arc::new(Log::new(None)), FRAME, 8 << 20);
        let mut devices = DeviceTables::new(Arc::clone(&ram), &mut frames);
        devices.attach(&mut frames, bdf);
        let mut tables = PageTables::new(Arc::clone(&ram), &mut frames, levels);
        let pages = [(0x7f00_0000_1000, 0x3000, 12), (0x7f00_0020_0000, 0x40_0000, 21), (0x40_0000_0000, 1 << 30, 30)];
        for (iova, gpa, size_log2) in pages {
            tables.map(&mut frames, iova, gpa, size_log2, true);
        }
        let to = tables.binding(9, None);
        devices.set_pasid(&mut frames, bdf, pasid, to);
        let mut unit = Unit::new(UnitConfig::default(), Arc::clone(&ram));
        unit.write_register(offset::RTADDR, &(devices.root() | 1 << 10).to_le_bytes(), &Silent);
        let pointer = Global::new().with_root_table_pointer(true);
        unit.write_register(offset::GCMD, &u32::from(pointer).to_le_bytes(), &Silent);
        let on = Global::new().with_translation_enable(true);
        unit.write_register(offset::GCMD, &u32::from(on).to_le_bytes(), &Silent);
        let mut translate = |iova| {
            let request =
                TranslationRequest { requester: bdf, pasid: Some(pasid), iova: Iova(iova), access: Access::WRITE };
            unit.translate(request, &Silent)
        };
        for (iova, gpa, size_log2) in pages {
            let found = translate(iova + 0x123).unwrap();
            assert_eq!((found.gpa.0, found.size_log2, found.access.write), (gpa, size_log2, true), "{iova:#x}");
            let entry = tables.get(iova, size_log2);
            assert!(entry.accessed() && entry.dirty(), "the unit writes into the builder's entry: {entry:?}");
        }
        assert_eq!(translate(0x7f00_0000_2000).unwrap(), Translation::NOT_PRESENT);
        assert!(tables.clear(pages[0].0, 12).dirty(), "the old entry comes back");
        assert!(!tables.get(pages[0].0, 12).present());
        // Tables that a large page will take the place of: the bits that the unit set in them are still to be had.
        tables.map(&mut frames, 0x7f00_0000_3000, 0x4000, 12, true);
        translate(0x7f00_0000_3000).unwrap();
        let small = tables.detach(0x7f00_0000_0000, 21).unwrap();
        assert!(small.get(0x7f00_0000_3000, 12).dirty() && !tables.get(0x7f00_0000_0000, 21).present());
        tables.map(&mut frames, 0x7f00_0000_0000, 0x60_0000, 21, true);
        assert!(tables.detach(0x7f40_0000_0000, 30).is_none(), "nothing is mapped there");
    }
}

/// The unit's queue stops with an error while no function may master the bus: the fault event is pending, and is sent
/// through the first function that may.
#[test]
fn an_interrupt_that_nobody_can_send_comes_with_bus_mastering() {
    const MEMORY: u64 = 1 << 20;
    let functions = [Bdf(0x0010), Bdf(0x0018)];
    let (log, ram) = (Arc::new(Log::new(None)), Arc::new(Ram::new(1 << 20).unwrap()));
    let mut platform = Simulated::new(Arc::clone(&ram), Arc::clone(&log), None);
    let watch = Watcher::new(Arc::clone(&log), None);
    let (iommu, unit) = (Bdf(0x0008), UnitConfig::default());
    let functions = functions.map(FunctionSettings::new).to_vec();
    let config = MachineConfig { iommu, unit, audit: None, functions };
    let machine = Machine::new(&config, &mut platform, watch, drop).unwrap();
    let mut vmms: Vec<_> = machine
        .functions
        .into_iter()
        .map(|function| {
            let maps = Arc::clone(platform.maps(function.device.shared().bdf()));
            let parts = Parts { device: function.device, server: function.server, maps, memory: MEMORY, wired: false };
            Vmm::new(parts, Rng::new(1), Arc::clone(&log), None)
        })
        .collect();
    let maps = Arc::clone(platform.maps(iommu));
    let unit = UnitFunction::new(machine.bus, machine.iommu, machine.iommu_server, maps, MEMORY, Arc::clone(&log));
    unit.write32(offset::FECTL + 4, msi::FAULT);
    unit.write32(offset::FECTL + 8, 0xfee0_0000);
    unit.write32(offset::FECTL, 0);
    unit.write64(offset::IQA, 0x1_0000);
    unit.write32(offset::GCMD, Global::new().with_queued_invalidation_enable(true).into());
    // A descriptor of zeros has no type that there is.
    unit.write64(offset::IQT, 16);
    let came = |vmms: &mut Vec<Vmm>| {
        (0..50).flat_map(|_| 0..2).fold(0, |came, n| {
            vmms[n].turn();
            came | vmms[n].take_unit_interrupts()
        })
    };
    assert_eq!(came(&mut vmms), 0, "nobody may send it");
    vmms[1].set_command(pcie::Command::new().with_memory_space(true).with_bus_master(true));
    assert_eq!(came(&mut vmms), msi::FAULT);
    assert_eq!(log.failure(), None);
}
