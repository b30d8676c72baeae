//! A function without an IOMMU in front of it.
use svadev_endpoint::Gate;
use svadev_fabric::SourceId;
use svadev_spec::device::{Code, Descriptor, QueueStatus, opcode, queue_error};

use super::world::*;

fn world() -> World {
    World::with(|settings| settings.untranslated = true)
}

fn copy(src: u64, dst: u64, length: u64) -> Descriptor {
    Descriptor { opcode: opcode::COPY, src, dst, length, ..Descriptor::default() }
}

#[test]
fn addresses_are_guest_physical_and_nobody_is_asked() {
    let mut w = world();
    assert_eq!(w.shared().endpoint().gate(), Gate { bus_master: true, ats: false, pasid: false });
    w.enable(0, 4, None);
    let bytes = noise(3, 0x3000);
    w.write(0x20_0800, &bytes);
    assert_eq!(code(&w.run_one(0, copy(0x20_0800, 0x30_0123, 0x3000))), Code::Success);
    assert!(w.read(0x30_0123, 0x3000) == bytes);
    assert!(w.mmu.translated().is_empty() && w.mmu.requests().is_empty(), "there is no IOMMU to ask");
}

#[test]
fn memory_that_is_not_there_is_an_error_and_no_page_fault() {
    let mut w = world();
    w.enable(0, 4, None);
    assert_eq!(code(&w.run_one(0, copy(1 << 40, 0x30_0000, 64))), Code::MemoryError);
}

#[test]
fn there_are_no_pasids() {
    let mut w = world();
    w.enable(0, 4, None);
    assert_eq!(code(&w.run_one(0, for_process(pasid(7), copy(0x20_0000, 0x30_0000, 64)))), Code::TranslationBlocked);
    w.enable(1, 4, Some(pasid(7)));
    w.submit(1, &[copy(0x20_0000, 0x30_0000, 64)]);
    w.settle();
    let status: QueueStatus = w.status(1);
    assert_eq!(status.error(), queue_error::SQ_FAULT, "its ring is in the address space of a process");
}

#[test]
fn a_change_of_the_memory_map_drops_what_was_translated() {
    let mut w = world();
    w.enable(0, 4, None);
    assert_eq!(code(&w.run_one(0, copy(0x20_0000, 0x30_0000, 64))), Code::Success);
    let before = w.shared().counters().translations;
    assert_eq!(code(&w.run_one(0, copy(0x20_0000, 0x30_0000, 64))), Code::Success);
    assert_eq!(w.shared().counters().translations, before, "the device TLB has them");
    let _ = w.shared().memory_changed(1);
    assert_eq!(code(&w.run_one(0, copy(0x20_0000, 0x30_0000, 64))), Code::Success);
    assert!(w.shared().counters().translations > before);
    // The IOMMU's invalidations are of another source.
    let _ = w.invalidate(1, None, 0, 63);
    w.settle();
    assert_eq!(w.shared().endpoint().settings().source, SourceId::IDENTITY);
}
