//! The unit against the model: random and damaged tables, and caches after random changes and invalidations.
use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use svadev_fabric::{Access, AtsError, Iova, Pasid, TranslationRequest};
use svadev_memory::{GuestAddress, GuestMemory};
use svadev_spec::vtd::fault::TranslationResponse;
use svadev_spec::vtd::registers::offset;
use svadev_spec::vtd::tables::Level;

use super::model::{Asked, Model, Page, fault_record};
use super::world::{DEVICE, DOMAIN, FIRST_FREE, Mode, PS, RAM, ROOT, World, pasid_iotlb_page};
use crate::{Blocked, Caching, FaultReason, UnitConfig};

const PASID: u32 = 5;

/// Pages that the tables of a case map: address and log2 of the size. With four levels the last one lies in the upper
/// half.
const PAGES: [(u64, u8); 8] = [
    (0x7000, 12),
    (0x8000, 12),
    (0x20_0000, 21),
    (0x40_1000, 12),
    (0x4000_0000, 30),
    (0x8000_0000, 21),
    (1 << 39, 12),
    (0x00ff_ff80_0000_7000, 12),
];

/// What tables a case has, before they are damaged.
#[derive(Clone, Debug)]
struct Plan {
    /// PGTT.
    kind: u64,
    top: Level,
    second_top: Level,
    /// SRE, ERE, WPE and EAFE; PWSNP; SSADE.
    flags: [bool; 6],
    /// What the unit was built to be, but for caching.
    config: UnitConfig,
    /// Tables of legacy mode: only of kinds 2 and 4.
    legacy: bool,
    /// PDTS.
    directory_size: u8,
    /// RID_PRIV.
    rid_privileged: bool,
    /// Bits of each leaf.
    leaves: [u64; PAGES.len()],
    damage: Vec<(prop::sample::Index, Change)>,
}

#[derive(Clone, Debug)]
enum Change {
    Flip(u32),
    Set(u64),
    /// Address bits that lead to a table.
    PointTo(prop::sample::Index),
}

/// From the level with this number up.
fn level(lowest: u8) -> impl Strategy<Value = Level> {
    (lowest..=5).prop_map(|number| Level::new(number).unwrap())
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        // Presence and rights, at every level.
        4 => (0u32..3).prop_map(Change::Flip),
        6 => (0u32..64).prop_map(Change::Flip),
        1 => any::<u64>().prop_map(Change::Set),
        1 => Just(Change::Set(RAM | 7)),
        1 => Just(Change::Set(0xfee0_1007)),
        2 => any::<prop::sample::Index>().prop_map(Change::PointTo),
    ]
}

/// Mostly present, writable and user; accessed, dirty and the rest at random.
fn leaf_bits() -> impl Strategy<Value = u64> {
    let rights = prop_oneof![4 => Just(7u64), 1 => 0u64..8];
    (rights, 0u64..16, any::<bool>()).prop_map(|(rights, marks, xd)| {
        let marks = (marks & 3) << 5 | (marks & 12) << 6;
        rights | marks | if xd { 1 << 63 } else { 0 }
    })
}

/// A unit's capabilities: usually most are there.
fn config() -> impl Strategy<Value = UnitConfig> {
    (
        prop_oneof![3 => Just(52u8), 2 => Just(40), 1 => 36u8..=52],
        prop_oneof![3 => Just(20u8), 1 => 1u8..=20],
        any::<bool>(),
        prop::array::uniform7(prop::bool::weighted(0.95)),
    )
        .prop_map(
            |(
                host_address_width,
                max_pasid_bits,
                pages_1gib,
                [levels5, pages_2mib, first_stage, page_requests, nested, supervisor_requests, execute_requests],
            )| {
                let config = UnitConfig {
                    host_address_width,
                    max_pasid_bits,
                    levels5,
                    pages_1gib,
                    pages_2mib,
                    first_stage,
                    page_requests,
                    nested,
                    supervisor_requests,
                    execute_requests,
                    ..UnitConfig::default()
                };
                config.effective()
            },
        )
}

fn plan() -> impl Strategy<Value = Plan> {
    (
        prop_oneof![3 => Just(1u64), 3 => Just(2u64), 4 => Just(3u64), 1 => Just(4u64)],
        level(4),
        level(3),
        prop::array::uniform6(prop::bool::weighted(0.7)),
        (config(), prop::bool::weighted(0.1), prop_oneof![4 => Just(7u8), 1 => 0u8..7], prop::bool::weighted(0.1)),
        prop::array::uniform8(leaf_bits()),
        prop::collection::vec((any::<prop::sample::Index>(), change()), 0..5),
    )
        .prop_map(
            |(kind, top, second_top, flags, (config, legacy, directory_size, rid_privileged), leaves, damage)| Plan {
                kind: if legacy && kind != 4 { 2 } else { kind },
                top,
                second_top,
                flags,
                config,
                legacy,
                directory_size,
                rid_privileged,
                leaves,
                damage,
            },
        )
}

fn access() -> impl Strategy<Value = Access> {
    (1u8..4, any::<bool>(), any::<bool>()).prop_map(|(rw, execute, privileged)| Access {
        read: rw & 1 != 0,
        write: rw & 2 != 0,
        execute,
        privileged,
    })
}

/// A page and an offset into it or past it, or any address.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => (0..PAGES.len(), 0u64..0x3000).prop_map(|(page, offset)| PAGES[page].0 + offset),
        1 => (0..PAGES.len()).prop_map(|page| PAGES[page].0 | 0xff << 56),
        1 => any::<u64>(),
    ]
}

impl Plan {
    fn config(&self, caching: Caching) -> UnitConfig {
        UnitConfig { caching, ..self.config.clone() }
    }

    /// RTADDR.
    fn root(&self) -> u64 {
        ROOT | if self.legacy { 0 } else { 1 << 10 }
    }

    /// The tables. Returns the addresses of every word in them, and those of the structures above them.
    fn build(&self, caching: Caching) -> World {
        let mut world = World::with(self.config(caching));
        let (root, second_root) = (world.page(), world.page());
        let structures = match self.legacy {
            true => self.legacy_structures(&mut world, second_root),
            false => self.scalable_structures(&mut world, root, second_root),
        };
        let (top, second_top) = (self.top, if self.kind == 3 { Level::FOUR } else { self.second_top });
        for (i, (&(iova, size_log2), &bits)) in PAGES.iter().zip(&self.leaves).enumerate() {
            let iova = if top == Level::FOUR { iova & 0xffff_ffff_ffff } else { iova };
            let frame = (i as u64 + 1) << size_log2;
            if self.kind != 2 {
                world.map(root, top, iova, frame | bits & !PS, size_log2);
            } else if iova >> second_top.width() == 0 {
                world.map(second_root, second_top, iova, frame | bits & !PS, size_log2);
            }
        }
        if self.kind == 3 {
            // Memory to itself: tables in small pages, the rest in large ones, some of it read-only.
            for page in (0..0x20_0000).step_by(0x1000) {
                world.map(second_root, Level::FOUR, FIRST_FREE + page, (FIRST_FREE + page) | 3, 12);
            }
            for page in (0..0x4000_0000u64).step_by(0x20_0000).filter(|&p| p != FIRST_FREE) {
                world.map(second_root, Level::FOUR, page, page | if page < 0x40_0000 { 3 } else { 1 }, 21);
            }
            for page in 1..8 {
                world.map(
                    second_root,
                    Level::FOUR,
                    page << 30,
                    page << 30 | 3,
                    if self.config.pages_1gib { 30 } else { 21 },
                );
            }
        }
        let mut words = words(&world);
        // Also the reserved words of the structures, which are zero.
        words.extend(structures);
        for (index, change) in &self.damage {
            let at = *index.get(&words);
            let old = world.load(at);
            let new = match change {
                Change::Flip(bit) => old ^ 1 << bit,
                Change::Set(value) => *value,
                Change::PointTo(other) => old & 0xfff | other.get(&words) & !0xfff,
            };
            world.store(at, new);
        }
        world
    }
}

impl Plan {
    /// Root, context and PASID tables of scalable mode. Returns the words in them that are zero.
    fn scalable_structures(&self, world: &mut World, root: u64, second_root: u64) -> Vec<u64> {
        let mode = match self.kind {
            1 => Mode::First { root, top: self.top },
            2 => Mode::Second { root: second_root, top: self.second_top },
            3 => Mode::Nested { root, second_root },
            _ => Mode::PassThrough,
        };
        let entry = world.bind(DEVICE, PASID, DOMAIN, mode);
        world.bind(DEVICE, 0, DOMAIN, mode);
        let context = world.context_entry(DEVICE);
        world.store(context, world.load(context) & !(7 << 9) | u64::from(self.directory_size) << 9);
        world.store(context + 8, u64::from(self.rid_privileged) << 20);
        let top = self.top;
        // FSPM; `bind` has set it for a first stage alone.
        let five = u64::from(self.kind == 3 && top == Level::FIVE);
        let [sre, ere, wpe, eafe, snoop, marks] = self.flags.map(u64::from);
        for entry in [entry, world.pasid_entry(DEVICE, 0)] {
            world.store(entry, world.load(entry) | marks << 9);
            world.store(entry + 8, u64::from(DOMAIN) | snoop << 23);
            world.store(entry + 16, world.load(entry + 16) | sre | ere << 1 | five << 2 | wpe << 4 | eafe << 7);
        }
        (8..32).step_by(8).map(|i| context + i).chain((24..64).step_by(8).map(|i| entry + i)).collect()
    }

    /// Root and context tables of legacy mode. Returns the words in them that are zero.
    fn legacy_structures(&self, world: &mut World, second_root: u64) -> Vec<u64> {
        let contexts = world.page();
        let root_entry = ROOT + 16 * u64::from(DEVICE.bus());
        world.store(root_entry, contexts | 1);
        let at = contexts + 16 * u64::from(DEVICE.devfn());
        // TT 2 passes through, TT 1 serves translation requests, TT 0 does not.
        let kind = if self.kind == 4 { 2 } else { u64::from(self.flags[0]) };
        world.store(at + 8, u64::from(self.second_top.number() - 2) | u64::from(DOMAIN) << 8);
        world.store(at, second_root | kind << 2 | 1);
        world.write64(offset::RTADDR, ROOT);
        world.write32(offset::GCMD, 1 << 26 | 1 << 30 | 1 << 31);
        vec![root_entry + 8]
    }
}

/// The words of all structures and tables that are not zero.
fn words(world: &World) -> Vec<u64> {
    let root = ROOT + 16 * u64::from(DEVICE.bus());
    std::iter::once(root).chain((FIRST_FREE..world.first_free()).step_by(8)).filter(|&at| world.load(at) != 0).collect()
}

fn asked(pasid: Option<u32>, iova: u64, access: Access, ats: bool) -> Asked {
    Asked { requester: DEVICE, pasid, iova, access, ats }
}

/// What the unit says, in the model's terms. A fault of a translation request only shows as its kind of answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Answer {
    Page(Page),
    Blocked(u8),
    NoRights,
    Unsupported,
    Abort,
}

impl Answer {
    fn of(result: Result<Page, FaultReason>, ats: bool) -> Self {
        match result {
            Ok(page) => Self::Page(page),
            Err(reason) if !ats => Self::Blocked(reason.code()),
            Err(reason) => match reason.translation_response() {
                TranslationResponse::NoRights => Self::NoRights,
                TranslationResponse::UnsupportedRequest => Self::Unsupported,
                TranslationResponse::CompleterAbort => Self::Abort,
            },
        }
    }
}

fn ask_unit(world: &mut World, asked: &Asked) -> Answer {
    let Asked { requester, pasid, iova, access, ats } = *asked;
    let pasid = pasid.map(|p| Pasid::new(p).unwrap());
    let result = if ats {
        let request = TranslationRequest { requester, pasid, iova: Iova(iova), access };
        match world.unit.translate(request, &world.ports) {
            Ok(translation) if !translation.is_present() => return Answer::NoRights,
            Ok(translation) => translation,
            Err(AtsError::UnsupportedRequest) => return Answer::Unsupported,
            Err(AtsError::CompleterAbort) => return Answer::Abort,
        }
    } else {
        match world.unit.access(requester, pasid, Iova(iova), access, &world.ports) {
            Ok(translation) => translation,
            Err(Blocked::Fault(reason)) => return Answer::Blocked(reason.code()),
            Err(Blocked::AbortDma) => unreachable!("the model has no abort-DMA mode"),
        }
    };
    Answer::Page(Page {
        gpa: result.gpa.0,
        size_log2: result.size_log2,
        read: result.access.read,
        write: result.access.write,
        execute: result.access.execute,
    })
}

/// A page that gives no right, since no write was asked for and reads are not allowed, is *no rights* to a requester.
fn as_seen(answer: Answer, ats: bool) -> Answer {
    match answer {
        Answer::Page(Page { read: false, write: false, .. }) if ats => Answer::NoRights,
        other => other,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_unit_without_caches_is_the_model(
        plan in plan(),
        requests in prop::collection::vec((address(), access(), any::<bool>(), prop::bool::weighted(0.9)), 1..8),
    ) {
        let mut world = plan.build(Caching::None);
        let config = plan.config(Caching::None);
        let words = words(&world);
        for (iova, access, ats, with_pasid) in requests {
            // Legacy mode knows no PASID.
            let with_pasid = with_pasid != plan.legacy;
            if !with_pasid && iova >> 20 == 0xfee {
                continue;
            }
            let asked = asked(with_pasid.then_some(PASID), iova, access, ats);
            let before: Vec<u64> = words.iter().map(|&at| world.load(at)).collect();
            let (expected, record, updates) = {
                let ram = &world.ram;
                let mut load = |at: u64, _| ram.load_u64(GuestAddress(at)).ok();
                let mut model = Model::new(&config, plan.root(), &mut load);
                let result = model.translate(&asked);
                let record = result.err().filter(|reason| {
                    let told = ats && reason.translation_response() == TranslationResponse::NoRights;
                    let suppressed = model.fault_processing_disable && reason.is_qualified();
                    !told && !suppressed
                });
                let answer = as_seen(Answer::of(result, ats), ats);
                (answer, record.map(|reason| fault_record(&asked, reason)), model.updates)
            };
            prop_assert_eq!(ask_unit(&mut world, &asked), expected, "{:?}", asked);
            let recorded = world.take_fault_record().map(|(low, high)| (u64::from(low), u64::from(high)));
            prop_assert_eq!(recorded, record, "the fault record of {:?}", asked);
            prop_assert!(updates.keys().all(|at| words.contains(at)), "only present entries are marked: {updates:x?}");
            for (&at, old) in words.iter().zip(before) {
                let expected = updates.get(&at).copied().unwrap_or(old);
                prop_assert_eq!(world.load(at), expected, "the word at {:#x} after {:?}, {:#x} before", at, asked, old);
            }
        }
    }
}

/// One thing that happens to a cached world.
#[derive(Clone, Debug)]
enum Event {
    Access {
        page: usize,
        offset: u64,
        access: Access,
        ats: bool,
    },
    /// Software changes an entry of the tables.
    Change(prop::sample::Index, Change),
    /// PASID-based or domain page-selective: pages around an address, log2 of their number, and the invalidation hint.
    Pages {
        page: usize,
        offset: u64,
        order: u8,
        hint: bool,
    },
    Pasid,
    Domain,
    Everything,
    /// Of another PASID or domain: changes nothing.
    Stranger,
}

fn event() -> impl Strategy<Value = Event> {
    let near = || (0..2usize, prop_oneof![3 => Just(0u64), 1 => 0x1000..0x3000u64]);
    let order = prop_oneof![Just(0u8), Just(1), Just(6), Just(7), Just(9), Just(18)];
    // Only these leave anything in the IOTLB.
    let plain = access().prop_map(|access| Access { execute: false, privileged: false, ..access });
    let access = prop_oneof![5 => plain, 1 => access()];
    prop_oneof![
        10 => (near(), access, any::<bool>())
            .prop_map(|((page, offset), access, ats)| Event::Access { page, offset, access, ats }),
        5 => (any::<prop::sample::Index>(), change()).prop_map(|(index, change)| Event::Change(index, change)),
        4 => (near(), order, any::<bool>())
            .prop_map(|((page, offset), order, hint)| Event::Pages { page, offset, order, hint }),
        1 => Just(Event::Pasid),
        1 => Just(Event::Domain),
        1 => Just(Event::Everything),
        1 => Just(Event::Stranger),
    ]
}

/// Which values every word of the tables had, and what was invalidated when: so, what a cache may still hold.
#[derive(Default)]
struct History {
    now: usize,
    /// Values of a word, each with the last moment at which memory held it; the last one is there now.
    words: BTreeMap<u64, Vec<(u64, usize)>>,
    /// Invalidations: when, the addresses first to last, and whether only leaves went.
    invalidations: Vec<(usize, u64, u64, bool)>,
}

impl History {
    /// Takes note of what memory holds at `tables`.
    fn observe(&mut self, world: &World, tables: &[u64]) {
        self.now += 1;
        for &at in tables {
            let value = world.load(at);
            let values = self.words.entry(at).or_default();
            match values.last_mut() {
                Some(last) if last.0 == value => last.1 = self.now,
                _ => values.push((value, self.now)),
            }
        }
    }

    fn invalidate(&mut self, first: u64, last: u64, hint: bool) {
        self.invalidations.push((self.now, first, last, hint));
        self.now += 1;
    }

    /// When everything about `iova` was last dropped, and when at least its page was.
    fn floors(&self, iova: u64) -> (usize, usize) {
        let last = |only_leaf: bool| {
            let mut times = self.invalidations.iter().filter(|i| (i.1..=i.2).contains(&iova) && (only_leaf || !i.3));
            times.next_back().map_or(0, |i| i.0)
        };
        (last(false), last(true))
    }

    /// Every answer that some mixture of values gives which a cache may still hold, each word on its own. `None`: too
    /// many to try.
    fn permitted(&self, config: &UnitConfig, asked: &Asked, world: &World) -> Option<BTreeSet<Answer>> {
        let (all, leaf) = self.floors(asked.iova);
        let mut answers = BTreeSet::new();
        // Which value to take of each word that has several: counted up like the digits of a number.
        let mut script: Vec<(usize, usize)> = Vec::new();
        for _ in 0..4096 {
            let mut step = 0;
            let mut load = |at: u64, level: u8| {
                let live = world.ram.load_u64(GuestAddress(at)).ok();
                let Some(values) = self.words.get(&at).filter(|_| level != 0) else {
                    return live;
                };
                let candidates: Vec<u64> = values
                    .iter()
                    .filter(|(value, until)| {
                        let is_leaf = level == 1 || value & PS != 0;
                        *until > if is_leaf { leaf } else { all } || Some(*value) == live
                    })
                    .map(|&(value, _)| value)
                    .collect();
                if script.len() == step {
                    script.push((0, candidates.len()));
                }
                step += 1;
                Some(candidates[script[step - 1].0])
            };
            let mut model = Model::new(config, ROOT | 1 << 10, &mut load);
            answers.insert(as_seen(Answer::of(model.translate(asked), asked.ats), asked.ats));
            while let Some((choice, of)) = script.pop() {
                if choice + 1 < of {
                    script.push((choice + 1, of));
                    break;
                }
            }
            if script.is_empty() {
                return Some(answers);
            }
        }
        None
    }
}

/// An address as far as the tables look at it.
fn in_tables(iova: u64, plan: &Plan) -> u64 {
    let width = if plan.kind == 1 { plan.top } else { plan.second_top }.width();
    let low = iova & ((1 << width) - 1);
    if plan.kind == 1 && iova >> (width - 1) & 1 == 1 { low | u64::MAX << width } else { low }
}

/// The entries on the way to `iova`, as the tables are now.
fn way(world: &World, plan: &Plan, iova: u64) -> Vec<u64> {
    let (mut table, top) = match plan.kind {
        1 => (FIRST_FREE, plan.top),
        _ => (FIRST_FREE + 0x1000, plan.second_top),
    };
    let mut way = Vec::new();
    for level in std::iter::successors(Some(top), |level| level.below()) {
        way.push(table + level.entry_offset(iova));
        let entry = world.load(way[way.len() - 1]);
        if entry == 0 || entry & PS != 0 {
            break;
        }
        table = entry & 0x000f_ffff_ffff_f000;
    }
    way
}

/// `focus` are the two of [`PAGES`] that everything happens around, so that a change is often one that matters.
fn run(plan: &Plan, caching: Caching, focus: [usize; 2], events: &[Event]) -> Result<(), TestCaseError> {
    let mut world = plan.build(caching);
    let config = plan.config(caching);
    let mut history = History::default();
    // Every other word is zero and stays so.
    let (tables, structures): (Vec<u64>, Vec<u64>) = words(&world).into_iter().partition(|&at| is_paging(&world, at));
    let structures: Vec<(u64, u64)> = structures.into_iter().map(|at| (at, world.load(at))).collect();
    let near = |page: usize, offset: u64| in_tables(PAGES[focus[page]].0 + offset, plan);
    let targets: Vec<u64> =
        [0, 1].into_iter().flat_map(|page| way(&world, plan, near(page, 0))).filter(|at| tables.contains(at)).collect();
    let targets = if targets.is_empty() { &tables } else { &targets };
    history.observe(&world, &tables);
    for event in events {
        match event {
            Event::Access { page, offset, access, ats } => {
                let asked = asked(Some(PASID), near(*page, *offset), *access, *ats);
                let Some(permitted) = history.permitted(&config, &asked, &world) else { continue };
                let answer = ask_unit(&mut world, &asked);
                prop_assert!(permitted.contains(&answer), "{answer:x?} for {asked:x?}, but only {permitted:x?} may be");
            }
            Event::Change(index, change) => {
                let at = *index.get(targets);
                let new = match change {
                    Change::Flip(bit) => world.load(at) ^ 1 << bit,
                    Change::Set(value) => *value,
                    Change::PointTo(other) => world.load(at) & 0xfff | other.get(&tables) & !0xfff,
                };
                world.store(at, new);
            }
            Event::Pages { page, offset, order, hint } => {
                let iova = near(*page, *offset);
                let high = iova & !0xfff | u64::from(*hint) << 6 | u64::from(*order);
                let domain = [2 | 3 << 4 | u64::from(DOMAIN) << 16, high];
                let descriptor = if plan.kind == 1 { pasid_iotlb_page(DOMAIN, PASID, high, 0) } else { domain };
                world.submit_and_wait(&[descriptor]);
                let size = 0x1000u64 << order;
                history.invalidate(iova & !(size - 1), iova | (size - 1), *hint);
            }
            Event::Pasid if plan.kind == 1 => {
                world.submit_and_wait(&[[6 | 2 << 4 | u64::from(DOMAIN) << 16 | u64::from(PASID) << 32, 0]]);
                history.invalidate(0, u64::MAX, false);
            }
            Event::Pasid | Event::Domain => {
                world.submit_and_wait(&[[2 | 2 << 4 | u64::from(DOMAIN) << 16, 0]]);
                history.invalidate(0, u64::MAX, false);
            }
            Event::Everything => {
                world.submit_and_wait(&[[2 | 1 << 4, 0]]);
                history.invalidate(0, u64::MAX, false);
            }
            Event::Stranger => {
                world.submit_and_wait(&[[6 | 2 << 4 | 9 << 16 | 77 << 32, 0], [2 | 2 << 4 | 9 << 16, 0]]);
            }
        }
        history.observe(&world, &tables);
        // A changed entry can lead a walk into the structures, where it sets accessed or dirty. The history knows
        // nothing of what is cached of those.
        if structures.iter().any(|&(at, value)| world.load(at) != value) {
            break;
        }
    }
    Ok(())
}

/// Whether the word is in page tables, not in a context, PASID directory or PASID table.
fn is_paging(world: &World, at: u64) -> bool {
    let context = world.load(ROOT) & !0xfff;
    let directory = world.load(context + 32 * u64::from(DEVICE.devfn())) & !0xfff;
    let table = world.load(directory) & !0xfff;
    at >= FIRST_FREE
        && at & !0xfff != context
        && !(directory..directory + 0x2_0000).contains(&at)
        && at & !0xfff != table
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn caches_answer_nothing_that_was_invalidated(
        plan in plan(),
        second in any::<bool>(),
        focus in prop::array::uniform2(0..PAGES.len()),
        adversarial in any::<bool>(),
        events in prop::collection::vec(event(), 1..40),
    ) {
        let plan = Plan { kind: if second { 2 } else { 1 }, legacy: false, damage: Vec::new(), ..plan };
        run(&plan, if adversarial { Caching::Adversarial } else { Caching::Strict }, focus, &events)?;
    }
}
