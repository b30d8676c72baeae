//! The auditor: mistakes of both kinds that are planted, and histories without any.
use svadev_fabric::{Access, Bdf, Iova};
use svadev_memory::{GuestAddress, GuestMemory};
use svadev_spec::vtd::registers::offset;
use svadev_spec::vtd::tables::Level;

use super::world::{
    DEVICE, DOMAIN, Mode, OTHER, PASID, RAM, RW, SS_R, SS_W, USER_PAGE, World, pasid_cache, pasid_device_tlb,
    pasid_iotlb_page, wait_descriptor,
};
use crate::observe::{Observer, Scope};
use crate::{AuditConfig, Cached, Caching, Finding, FindingKind, UnitConfig};

const MS: u64 = 1_000_000;
const LIMIT: u64 = 100 * MS;
const PAGE: u64 = 0x7000;
const OLD: u64 = 0x5000;
const NEW: u64 = 0x6000;

/// A world with an auditor. Its caches are small, since it goes through all of them at each step.
fn watched(caching: Caching) -> World {
    let mut world =
        World::with(UnitConfig { caching, iotlb_entries: 64, pasid_cache_entries: 64, ..UnitConfig::default() });
    world.unit.start_audit(AuditConfig { limit_ns: LIMIT });
    world
}

/// As above, with a first-stage PASID and one page in it; where the page's entry is.
fn audited(caching: Caching) -> (World, u64) {
    let mut world = watched(caching);
    let root = world.bind_first_stage(Level::FOUR);
    let leaf = world.map(root, Level::FOUR, PAGE, OLD | USER_PAGE, 12);
    (world, leaf)
}

impl World {
    /// Goes through everything, often enough for any cache, from `from_ms` on in steps of a millisecond.
    fn audit(&mut self, from_ms: u64, to_ms: u64) -> Vec<Finding> {
        for ms in from_ms..to_ms {
            self.unit.audit_at(ms * MS);
            self.unit.audit_slice(1 << 20);
        }
        self.unit.take_audit_findings()
    }

    /// The function uses what it was given.
    fn use_at(&mut self, ms: u64, gpa: u64, access: Access) -> Vec<Finding> {
        self.unit.audit_at(ms * MS);
        self.unit.audit_use(DEVICE, Some(PASID), Iova(PAGE), gpa, access);
        self.unit.take_audit_findings()
    }

    /// As Linux invalidates a page: IOTLB, device TLB, wait.
    fn invalidate_page(&mut self, iova: u64) {
        self.submit_and_wait(&[pasid_iotlb_page(DOMAIN, 5, iova, 0), pasid_device_tlb(DEVICE, 5, iova, 0)]);
    }
}

fn only(findings: &[Finding]) -> &Finding {
    assert_eq!(findings.len(), 1, "{findings:#?}");
    &findings[0]
}

#[test]
fn a_changed_page_that_is_not_invalidated_is_the_guests_mistake() {
    for caching in [Caching::None, Caching::Strict, Caching::Adversarial] {
        let (mut world, leaf) = audited(caching);
        world.translate_ok(PAGE, Access::READ_WRITE);
        assert!(world.audit(0, 5).is_empty());
        world.store(leaf, NEW | USER_PAGE);
        // First seen at 5 ms.
        assert!(world.audit(5, 105).is_empty(), "within the limit");
        let findings = world.audit(105, 300);
        let finding = only(&findings);
        assert_eq!(
            (finding.kind, finding.requester, finding.pasid, finding.page, finding.age_ns),
            (FindingKind::MissingInvalidation, DEVICE, Some(PASID), PAGE, LIMIT)
        );
        assert!(finding.old.contains("0x5000") && finding.new.contains("0x6000"), "{finding}");
        assert!(
            finding.events.iter().any(|event| event.to_string().contains("was told 0x7000 -> 0x5000")),
            "{finding}"
        );
    }
}

#[test]
fn what_vanishes_and_what_loses_a_right_counts_as_changed() {
    for entry in [0, OLD | USER_PAGE & !RW] {
        let (mut world, leaf) = audited(Caching::Strict);
        world.translate_ok(PAGE, Access::READ_WRITE);
        world.store(leaf, entry);
        only(&world.audit(0, 102));
    }
}

#[test]
fn an_invalidation_in_time_leaves_nothing_to_say() {
    for caching in [Caching::None, Caching::Strict, Caching::Adversarial] {
        let (mut world, leaf) = audited(caching);
        for round in 0..3 {
            world.translate_ok(PAGE, Access::READ_WRITE);
            assert!(world.use_at(round * 100, if round % 2 == 0 { OLD } else { NEW }, Access::READ_WRITE).is_empty());
            world.store(leaf, if round % 2 == 0 { NEW } else { OLD } | USER_PAGE);
            assert!(world.audit(round * 100, round * 100 + 99).is_empty());
            world.invalidate_page(PAGE);
        }
        assert!(world.audit(300, 420).is_empty());
    }
}

#[test]
fn before_the_wait_completes_stale_is_legal_for_ever() {
    let (mut world, leaf) = audited(Caching::Strict);
    world.translate_ok(PAGE, Access::READ);
    world.store(leaf, NEW | USER_PAGE);
    world.ports.slow.set(true);
    world.submit(&[pasid_iotlb_page(DOMAIN, 5, PAGE, 0), pasid_device_tlb(DEVICE, 5, PAGE, 0), wait_descriptor(1)]);
    assert!(world.audit(0, 1000).is_empty(), "the function has not acknowledged");
    assert!(world.use_at(1000, OLD, Access::READ).is_empty(), "nor has it to stop before it does");
    let tag = world.ports.tags()[0];
    world.unit.invalidate_complete(DEVICE, tag, &world.ports);
    let findings = world.use_at(1001, OLD, Access::READ);
    let finding = only(&findings);
    assert_eq!((finding.kind, finding.cache), (FindingKind::StaleAfterInvalidation, Cached::DeviceTlb));
    assert!(finding.in_use && finding.age_ns == MS, "{finding}");
    assert!(world.use_at(1002, OLD, Access::READ).is_empty(), "said once");
}

#[test]
fn a_translation_of_after_the_invalidation_is_another_one() {
    let (mut world, leaf) = audited(Caching::Strict);
    world.translate_ok(PAGE, Access::READ);
    world.store(leaf, NEW | USER_PAGE);
    world.ports.slow.set(true);
    world.submit(&[pasid_iotlb_page(DOMAIN, 5, PAGE, 0), pasid_device_tlb(DEVICE, 5, PAGE, 0), wait_descriptor(1)]);
    // One engine has let go and asks anew while another has not acknowledged.
    world.translate_ok(PAGE, Access::READ);
    let tag = world.ports.tags()[0];
    world.unit.invalidate_complete(DEVICE, tag, &world.ports);
    world.store(leaf, OLD | USER_PAGE);
    assert!(
        world.use_at(1, NEW, Access::READ).is_empty(),
        "given out after the invalidation began: still held by right"
    );
    assert_eq!(only(&world.use_at(101, NEW, Access::READ)).kind, FindingKind::MissingInvalidation);
}

#[test]
fn what_software_need_not_invalidate_is_no_finding() {
    let (mut world, leaf) = audited(Caching::Strict);
    world.store(leaf, OLD | USER_PAGE & !RW);
    world.translate_ok(PAGE, Access::READ);
    // A right more; accessed and dirty; ignored bits; absent for a moment.
    for entry in [OLD | USER_PAGE, OLD | USER_PAGE | 3 << 5, OLD | USER_PAGE | 7 << 9, 0, OLD | USER_PAGE] {
        world.store(leaf, entry);
        assert!(world.audit(0, 60).is_empty(), "{entry:#x}");
    }
    // A page that becomes present was never held.
    let root = world.bind_first_stage(Level::FOUR);
    assert!(!world.translate(Some(PASID), 0x9000, Access::READ).unwrap().is_present());
    world.map(root, Level::FOUR, 0x9000, NEW | USER_PAGE, 12);
    assert!(world.audit(60, 150).is_empty());
}

#[test]
fn a_change_that_goes_back_starts_anew() {
    let (mut world, leaf) = audited(Caching::Strict);
    world.translate_ok(PAGE, Access::READ);
    for round in 0..4 {
        world.store(leaf, 0);
        assert!(world.audit(round * 100, round * 100 + 90).is_empty());
        world.store(leaf, OLD | USER_PAGE);
        assert!(world.audit(round * 100 + 90, round * 100 + 100).is_empty());
    }
}

#[test]
fn entries_that_survive_their_invalidation_are_our_mistake() {
    for caching in [Caching::Strict, Caching::Adversarial] {
        let (mut world, leaf) = audited(caching);
        world.translate_ok(PAGE, Access::READ);
        world.store(leaf, NEW | USER_PAGE);
        // The books hear of an invalidation that the caches do not.
        let audit = world.unit.audit.as_mut().unwrap();
        audit.invalidated(Scope::Iotlb);
        audit.completed();
        let findings = world.audit(0, 3);
        assert_eq!(only(&findings).kind, FindingKind::StaleAfterInvalidation, "{caching:?}");
        assert_eq!(only(&findings).cache, Cached::Iotlb);
    }
}

#[test]
fn a_hit_that_survived_is_found_at_its_use() {
    let (mut world, leaf) = audited(Caching::Strict);
    world.translate_ok(PAGE, Access::READ);
    world.store(leaf, NEW | USER_PAGE);
    let audit = world.unit.audit.as_mut().unwrap();
    audit.invalidated(Scope::Iotlb);
    audit.completed();
    assert_eq!(world.translate_ok(PAGE, Access::READ).0, OLD);
    let findings = world.unit.take_audit_findings();
    assert!(only(&findings).in_use);
}

#[test]
fn tables_and_pasid_entries_are_compared_too() {
    let (mut world, _) = audited(Caching::Strict);
    world.translate_ok(PAGE, Access::READ);
    // The PASID table entry leads elsewhere: everything behind it is stale, and each is said once.
    let entry = world.pasid_entry(DEVICE, 5);
    world.store(entry, 0);
    let findings = world.audit(0, 102);
    let caches: Vec<_> = findings.iter().map(|finding| finding.cache).collect();
    assert!(caches.contains(&Cached::PasidCache), "{findings:#?}");
    assert!(caches.contains(&Cached::PagingStructure(Level::FOUR)), "{findings:#?}");
    assert!(findings.iter().all(|finding| finding.kind == FindingKind::MissingInvalidation));

    let (mut world, _) = audited(Caching::Adversarial);
    world.translate_ok(PAGE, Access::READ);
    let entry = world.pasid_entry(DEVICE, 5);
    world.store(entry, 0);
    assert!(world.audit(0, 90).is_empty());
    // As Linux tears a PASID down.
    world.submit_and_wait(&[pasid_cache(DOMAIN, 5)]);
    world.submit_and_wait(&[[6 | 2 << 4 | u64::from(DOMAIN) << 16 | 5 << 32, 0]]);
    world.submit_and_wait(&[pasid_device_tlb(DEVICE, 5, 0, 51)]);
    assert!(world.audit(90, 1000).is_empty());
}

#[test]
fn leaves_only_leaves_the_tables() {
    let (mut world, _) = audited(Caching::Adversarial);
    world.translate_ok(PAGE, Access::READ);
    let root = world.bind_first_stage(Level::FOUR);
    world.map(root, Level::FOUR, PAGE, NEW | USER_PAGE, 12);
    // Other tables throughout, but software says that only leaves have changed.
    world.submit_and_wait(&[pasid_cache(DOMAIN, 5), pasid_iotlb_page(DOMAIN, 5, PAGE, 1 << 6)]);
    world.submit_and_wait(&[pasid_device_tlb(DEVICE, 5, PAGE, 0)]);
    let findings = world.audit(0, 102);
    assert!(findings.iter().all(|f| matches!(f.cache, Cached::PagingStructure(_))), "{findings:#?}");
    assert_eq!(findings.len(), 3, "levels 2 to 4");
}

#[test]
fn second_stage_and_nested_translations_are_compared() {
    for nested in [false, true] {
        let mut world = watched(Caching::Adversarial);
        let (root, second_root) = (world.page(), world.page());
        let mut leaf = 0;
        for page in (0..RAM).step_by(0x20_0000) {
            world.map(second_root, Level::FOUR, page, page | SS_R | SS_W, 21);
        }
        if nested {
            world.bind(DEVICE, 5, DOMAIN, Mode::Nested { root, second_root });
            leaf = world.map(root, Level::FOUR, PAGE, OLD | USER_PAGE, 12);
        } else {
            world.bind(DEVICE, 5, DOMAIN, Mode::Second { root: second_root, top: Level::FOUR });
        }
        world.translate_ok(PAGE, Access::READ_WRITE);
        assert!(world.audit(0, 300).is_empty(), "nested {nested}");
        if nested {
            world.store(leaf, NEW | USER_PAGE);
        } else {
            world.map(second_root, Level::FOUR, 0, 0x40_0000 | SS_R | SS_W, 21);
        }
        let findings = world.audit(300, 402);
        assert_eq!(only(&findings).kind, FindingKind::MissingInvalidation);
    }
}

#[test]
fn every_piece_of_a_large_page_is_looked_at() {
    let (mut world, _) = audited(Caching::Strict);
    let root = world.bind_first_stage(Level::FOUR);
    let large = world.map(root, Level::FOUR, 0x4000_0000, 0x20_0000 | USER_PAGE, 21);
    world.translate_ok(0x4000_0000, Access::READ);
    assert!(world.audit(0, 20).is_empty());
    // Split: all pieces as before but one.
    let table = world.page();
    for piece in 0..512 {
        let to = if piece == 300 { NEW } else { 0x20_0000 + (piece << 12) };
        world.store(table + 8 * piece, to | USER_PAGE);
    }
    world.store(large, table | USER_PAGE);
    // One slice of a few entries is a pass here. The piece comes up once in 512 of them.
    for _ in 0..512 {
        world.unit.audit_slice(64);
    }
    assert!(world.unit.audit.as_ref().unwrap().stale(DEVICE), "the piece was looked at, and is kept in view");
    assert!(world.unit.take_audit_findings().is_empty());
    world.unit.audit_at(200 * MS);
    world.unit.audit_slice(64);
    assert_eq!(only(&world.unit.take_audit_findings()).page, 0x4000_0000);
}

#[test]
fn what_was_never_given_out_and_what_was_forgotten_differ() {
    let (mut world, _) = audited(Caching::Strict);
    world.translate_ok(PAGE, Access::READ);
    // Never given out, and wrong.
    assert_eq!(only(&world.use_at(0, NEW, Access::READ)).kind, FindingKind::StaleAfterInvalidation);
    // More than was given, and more than the tables allow.
    let (mut world, leaf) = audited(Caching::Strict);
    world.store(leaf, OLD | USER_PAGE & !RW);
    world.translate_ok(PAGE, Access::READ);
    assert_eq!(only(&world.use_at(0, OLD, Access::WRITE)).kind, FindingKind::StaleAfterInvalidation);
    // A function that has dropped its device TLB by itself is owed nothing.
    let (mut world, leaf) = audited(Caching::None);
    world.translate_ok(PAGE, Access::READ);
    world.unit.audit_forget(DEVICE);
    world.store(leaf, NEW | USER_PAGE);
    assert!(world.audit(0, 300).is_empty());
    assert!(world.use_at(300, OLD, Access::READ).is_empty());
}

#[test]
fn a_reset_and_a_new_root_table_end_all_debts() {
    for reset in [true, false] {
        let (mut world, leaf) = audited(Caching::Adversarial);
        world.translate_ok(PAGE, Access::READ);
        world.store(leaf, NEW | USER_PAGE);
        if reset {
            world.unit.reset();
        } else {
            world.write32(offset::GCMD, 1 << 31 | 1 << 30 | 1 << 26);
        }
        assert!(world.audit(0, 300).is_empty());
    }
}

#[test]
fn nothing_is_said_while_dma_is_aborted() {
    // §3.4.5: nothing is translated, so nothing stale can be used. Tables may be torn down without a word.
    let (mut world, leaf) = audited(Caching::Strict);
    world.translate_ok(PAGE, Access::READ);
    world.store(leaf, NEW | USER_PAGE);
    assert!(world.audit(0, 90).is_empty());
    world.write64(offset::RTADDR, 3 << 10);
    world.write32(offset::GCMD, 1 << 31 | 1 << 30 | 1 << 26);
    let checks = world.unit.audit_counters().unwrap().checks;
    assert!(world.audit(90, 300).is_empty());
    assert!(world.use_at(300, OLD, Access::READ).is_empty());
    assert_eq!(world.unit.audit_counters().unwrap().checks, checks, "nobody looked");
}

#[test]
fn a_domain_shared_by_functions_is_compared_for_each() {
    let (mut world, leaf) = audited(Caching::Strict);
    let other_entry = world.pasid_entry(OTHER, 5);
    let entry = world.pasid_entry(DEVICE, 5);
    for quadword in (0..64).step_by(8) {
        let value = world.load(entry + quadword);
        world.store(other_entry + quadword, value);
    }
    for requester in [DEVICE, OTHER] {
        let request =
            svadev_fabric::TranslationRequest { requester, pasid: Some(PASID), iova: Iova(PAGE), access: Access::READ };
        assert!(world.unit.translate(request, &world.ports).unwrap().is_present());
    }
    world.store(leaf, NEW | USER_PAGE);
    // Only one of the two is told.
    world.invalidate_page(PAGE);
    let findings = world.audit(0, 102);
    assert_eq!((only(&findings).requester, only(&findings).cache), (OTHER, Cached::DeviceTlb));
}

#[test]
fn a_flood_is_bounded() {
    let (mut world, _) = audited(Caching::Adversarial);
    let root = world.bind_first_stage(Level::FOUR);
    for page in 0..500 {
        world.map(root, Level::FOUR, page << 12, OLD | USER_PAGE, 12);
        world.translate_ok(page << 12, Access::READ);
    }
    let table = world.pasid_entry(DEVICE, 5);
    world.store(table, 0);
    let mut findings = Vec::new();
    for ms in (0..=1200).step_by(100) {
        findings.extend(world.audit(ms, ms + 1));
    }
    assert!((8..=16).contains(&findings.len()), "{} findings in 1.2 s", findings.len());
    let counters = world.unit.audit_counters().unwrap();
    assert!(counters.suppressed > 0 && counters.findings == counters.suppressed + findings.len() as u64);
    assert_eq!(counters.forgotten, 0);
}

#[test]
fn looking_changes_nothing_in_memory() {
    let (mut world, leaf) = audited(Caching::None);
    world.translate_ok(PAGE, Access::READ_WRITE);
    // Software takes accessed and dirty away.
    world.store(leaf, OLD | USER_PAGE);
    world.audit(0, 3);
    world.use_at(3, OLD, Access::READ_WRITE);
    assert_eq!(world.ram.load_u64(GuestAddress(leaf)).unwrap(), OLD | USER_PAGE);
    assert_eq!(world.unit.audit_counters().unwrap().findings, 0);
}

#[test]
fn without_an_auditor_nothing_is_kept() {
    let mut world = World::new();
    world.unit.audit_slice(1000);
    world.unit.audit_use(Bdf(0x30), None, Iova(0), 0, Access::READ);
    assert!(world.unit.take_audit_findings().is_empty() && world.unit.audit_counters().is_none());
}
