//! Fixed seeds, the same seed twice, and bugs on purpose.
use std::sync::Arc;

use svadev_fabric::{Access, Bdf, Downstream, InvalidateAck, InvalidateRequest, Iova, Msi, PageGroupResponse, Pasid};
use svadev_fabric::{Translation, TranslationRequest};
use svadev_iommu::{Unit, UnitConfig};
use svadev_memory::Ram;
use svadev_spec::vtd::registers::{Global, offset};

use crate::frames::{FRAME, Frames};
use crate::log::Log;
use crate::tables::{DeviceTables, FirstStage, PageTables};
use crate::{Mutant, Options, run};

#[test]
fn fixed_seeds_are_clean() {
    let (mut completed, mut groups) = (0, 0);
    for seed in 1..=50 {
        let report = run(seed, Options::default());
        assert_eq!(report.failure, None, "seed {seed}");
        completed += report.completed;
        groups += report.groups;
    }
    // The worlds are not idle: about 200 descriptors each, and half as many groups.
    assert!(completed > 5000 && groups > 2000, "{completed} descriptors, {groups} groups");
}

#[test]
fn a_seed_has_one_story() {
    let mut hashes = Vec::new();
    for seed in 100..105 {
        let report = run(seed, Options::default());
        assert_eq!(report, run(seed, Options::default()));
        hashes.push(report.hash);
    }
    hashes.sort_unstable();
    hashes.dedup();
    assert_eq!(hashes.len(), 5, "different seeds have different stories");
}

/// The checkers are worth something: every planted bug is seen on some of a few seeds.
#[test]
fn every_mutant_is_caught() {
    const SEEDS: u64 = 40;
    let survivors: Vec<_> = Mutant::ALL
        .into_iter()
        .filter(|&mutant| {
            !(1..=SEEDS).any(|seed| run(seed, Options { mutant: Some(mutant), sink: None }).failure.is_some())
        })
        .collect();
    assert!(survivors.is_empty(), "not caught: {survivors:?}");
}

struct Nobody;

impl Downstream for Nobody {
    fn invalidate(&self, _: Bdf, _: InvalidateRequest) -> InvalidateAck {
        InvalidateAck::Done
    }
    fn page_group_response(&self, _: Bdf, _: PageGroupResponse) {}
    fn message_interrupt(&self, _: Option<Bdf>, _: Msi) {}
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
        let to = FirstStage { root: tables.root(), levels, domain_id: 9 };
        devices.set_pasid(&mut frames, bdf, pasid, to);
        let mut unit = Unit::new(UnitConfig::default(), Arc::clone(&ram));
        unit.write_register(offset::RTADDR, &(devices.root() | 1 << 10).to_le_bytes(), &Nobody);
        let pointer = Global::new().with_root_table_pointer(true);
        unit.write_register(offset::GCMD, &u32::from(pointer).to_le_bytes(), &Nobody);
        let on = Global::new().with_translation_enable(true);
        unit.write_register(offset::GCMD, &u32::from(on).to_le_bytes(), &Nobody);
        let mut translate = |iova| {
            let request =
                TranslationRequest { requester: bdf, pasid: Some(pasid), iova: Iova(iova), access: Access::WRITE };
            unit.translate(request, &Nobody)
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
    }
}
