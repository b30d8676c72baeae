//! `translate`: the time that the IOMMU alone takes for a translation.
use std::cell::RefCell;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use svadev_fabric::testing::Silent;
use svadev_fabric::{Access, Bdf, Iova, Pasid, TranslationRequest};
use svadev_iommu::measure::Lookups;
use svadev_iommu::{Caching, Unit, UnitConfig};
use svadev_memory::{GuestAddress, Mappings, MemoryMap, Region};
use svadev_spec::vtd::invalidation::{PasidIotlb, descriptor_type, pasid_iotlb_granularity};
use svadev_spec::vtd::registers::offset;

use super::Session;
use super::memory::Shared;
use super::tables::{DOMAIN, Tables};
use crate::row::{Goal, Row, Suite, Target};
use crate::stats::paired;

const MEMORY: u64 = 128 << 20;
const QUEUE: u64 = 0x1000;
const TABLES: std::ops::Range<u64> = 0x10_0000..MEMORY;
const DEVICE: Bdf = Bdf(0x0030);
/// Translations of one turn.
const TURN: u64 = 1 << 14;
/// Pages of which one after another is not remembered in the cases of misses: fewer than the caches have room for.
const COLD: u64 = 4096;
/// Pages that share no table but the topmost, few enough for all entries on the way to stay in the processor's
/// first-level cache.
const FAR: u64 = 64;
/// How often one turn translates all of them.
const ROUNDS: u32 = 16;
/// *Flat* is less than this much slower.
const FLAT: f64 = 1.5;

/// A separate unit over shared memory, with five-level tables that `pasids` PASIDs share.
struct Translator {
    unit: Unit<Arc<MemoryMap>>,
    memory: Shared,
    tail: u64,
}

impl Translator {
    /// The first `pages` pages are mapped to themselves; without any, the [`far`] ones are there.
    fn new(pasids: u32, pages: u64, config: UnitConfig) -> anyhow::Result<Self> {
        let (memory, file) = Shared::create(MEMORY)?;
        let mut tables = Tables::new(&memory, TABLES);
        tables.attach(DEVICE, pasids);
        if pages != 0 {
            tables.map(0, 0, pages << 12, 12);
        } else {
            (0..FAR).for_each(|n| tables.map(far(n), n << 12, 1 << 12, 12));
        }
        let root = tables.finish();
        let map = Arc::new(MemoryMap::new(Mappings::new()));
        let gpa = GuestAddress(0);
        map.map(Region { gpa, size: MEMORY, offset: 0, read: true, write: true, fd: Some(file) })?;
        let mut unit = Unit::new(config, map);
        unit.write_register(offset::IQA, &(QUEUE | 1 << 11).to_le_bytes(), &Silent);
        unit.write_register(offset::RTADDR, &(root | 1 << 10).to_le_bytes(), &Silent);
        for command in [1u32 << 30, 1 << 26, 1 << 26 | 1 << 31] {
            unit.write_register(offset::GCMD, &command.to_le_bytes(), &Silent);
        }
        let mut translator = Self { unit, memory, tail: 0 };
        if pages != 0 {
            translator.translate(0, 0)?;
        }
        Ok(translator)
    }

    #[inline]
    fn translate(&mut self, pasid: u64, page: u64) -> anyhow::Result<()> {
        self.translate_to(pasid, page << 12, page << 12)
    }

    /// A request for `iova`, which must lead to `gpa`.
    #[inline]
    fn translate_to(&mut self, pasid: u64, iova: u64, gpa: u64) -> anyhow::Result<()> {
        let request = TranslationRequest {
            requester: DEVICE,
            pasid: Some(Pasid::from_low_bits(pasid)),
            iova: Iova(iova),
            access: Access::READ_WRITE,
        };
        // By reference: the result was written field by field, and a move as a whole would stall on those stores.
        let result = &self.unit.translate(request, &Silent);
        match result {
            Ok(translation) if translation.gpa.0 == gpa => Ok(()),
            wrong => anyhow::bail!("{iova:#x} of PASID {pasid} translates to {wrong:?}"),
        }
    }

    /// Invalidates the IOTLB entries of PASID 0, and nothing in the PASID cache.
    fn forget(&mut self) {
        let granularity = pasid_iotlb_granularity::PASID;
        let low = PasidIotlb::new().with_granularity(granularity).with_domain_id(DOMAIN).into_bits();
        let at = QUEUE + self.tail;
        let order = std::sync::atomic::Ordering::Relaxed;
        self.memory.word(at).store(low | u64::from(descriptor_type::PASID_IOTLB), order);
        self.memory.word(at + 8).store(0, order);
        self.tail = (self.tail + 32) % 0x1000;
        self.unit.write_register(offset::IQT, &self.tail.to_le_bytes(), &Silent);
    }
}

/// Address of the `n`th of [`FAR`] pages. Each page has an entry of its own in the level-5 table, and different indexes
/// in the tables below. Entries at the same index of many tables would share a few sets of the processor's caches.
fn far(n: u64) -> u64 {
    let place = |level: u64| scrambled(n * 8 + level, 512) << (12 + 9 * (level - 1));
    n << 48 | place(4) | place(3) | place(2) | place(1)
}

/// A pseudo-random number below `below`, a power of two, computed without a division.
fn scrambled(n: u64, below: u64) -> u64 {
    n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20 & (below - 1)
}

/// Time of one of `count` calls, ns.
fn each(count: u64, mut run: impl FnMut(u64) -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let start = Instant::now();
    for n in 0..count {
        run(n)?;
    }
    Ok(start.elapsed().as_secs_f64() * 1e9 / count as f64)
}

pub(super) fn run(session: &mut Session<'_>) -> anyhow::Result<()> {
    lookups(session)?;
    by_pasids(session)?;
    misses(session)
}

/// Time of one of `count` hits in an IOTLB without a unit, ns.
fn hit(lookups: &Lookups, count: u64) -> anyhow::Result<f64> {
    each(count, |n| {
        black_box(black_box(lookups).hit(scrambled(n, 64)));
        Ok(())
    })
}

/// The IOTLB alone.
fn lookups(session: &mut Session<'_>) -> anyhow::Result<()> {
    let small = Lookups::new(64, 0);
    for (entries, stale) in [(64, 0), (1 << 14, 0), (1 << 14, 1 << 14), (1 << 20, 0), (1 << 20, 1 << 20)] {
        let case = format!("IOTLB hit, {entries} entries, {stale} stale");
        session.case(Suite::Translate, &case);
        let lookups = Lookups::new(entries, stale);
        let pair = paired(session.time, || hit(&lookups, 16 * TURN), || hit(&small, 16 * TURN))?;
        let row = Row::compared(Suite::Translate, case, &pair, "ns", "64 entries");
        session.rows.push(row.aiming(
            Goal::G6,
            match entries {
                64 => Target::value_at_most(5.0),
                _ => Target::ratio_at_most(FLAT),
            },
        ));
    }
    Ok(())
}

/// Whole requests that hit. The number of pages stays the same, and only the number of known PASIDs grows. Then, for
/// comparison, every PASID in turn, so that the processor's own caches count too.
fn by_pasids(session: &mut Session<'_>) -> anyhow::Result<()> {
    const HOT: u64 = 64;
    let one = RefCell::new(Translator::new(1, HOT, UnitConfig::default())?);
    let baseline = || each(TURN, |n| one.borrow_mut().translate(0, scrambled(n, HOT)));
    for pasids in [1, 16, 256, 4096] {
        let mut many = Translator::new(pasids, HOT, UnitConfig::default())?;
        let count = u64::from(pasids);
        for pasid in 0..count {
            many.translate(pasid, 0)?;
        }
        let spread = count.min(HOT);
        let case = format!("request that hits, {HOT} pages, {pasids} PASIDs known");
        session.case(Suite::Translate, &case);
        let hot = |n: u64| {
            let page = scrambled(n, HOT);
            (page % spread * (count / spread), page / spread)
        };
        let pair = paired(
            session.time,
            || {
                each(TURN, |n| {
                    let (pasid, page) = hot(n);
                    many.translate(pasid, page)
                })
            },
            baseline,
        )?;
        let row = Row::compared(Suite::Translate, case, &pair, "ns", "one PASID").plotted(
            "Translation request that hits",
            "64 pages in use",
            count as f64,
            "PASIDs",
        );
        session.rows.push(if pasids == 1 { row } else { row.aiming(Goal::G6, Target::ratio_at_most(FLAT)) });

        let case = format!("request that hits, a page of each of {pasids} PASIDs");
        session.case(Suite::Translate, &case);
        let pair = paired(session.time, || each(TURN, |n| many.translate(scrambled(n, count), 0)), baseline)?;
        let row = Row::compared(Suite::Translate, case, &pair, "ns", "one PASID");
        session.rows.push(row.plotted("Translation request that hits", "a page of each", count as f64, "PASIDs"));
    }
    Ok(())
}

/// The baseline is hits at the same moment: other load on the host slows both down.
fn misses(session: &mut Session<'_>) -> anyhow::Result<()> {
    const BASELINE: &str = "IOTLB hit";
    let small = Lookups::new(64, 0);
    let name = "miss, five levels walked";
    session.case(Suite::Translate, name);
    let mut unit = Translator::new(1, 0, UnitConfig::default())?;
    // Several rounds per turn, since the baseline's turn evicted part of the processor's first-level cache.
    let miss = || {
        let mut sum = 0.0;
        for _ in 0..ROUNDS {
            unit.forget();
            sum += each(FAR, |n| unit.translate_to(0, far(n), n << 12))?;
        }
        Ok(sum / f64::from(ROUNDS))
    };
    let pair = paired(session.time, miss, || hit(&small, TURN)).context(name)?;
    let row = Row::compared(Suite::Translate, name, &pair, "ns", BASELINE);
    session.rows.push(row.aiming(Goal::G6, Target::value_at_most(100.0)));

    for (name, caching, stride) in [
        ("miss, upper levels cached", Caching::Strict, 1),
        ("miss, upper levels cached, pages far apart", Caching::Strict, 509),
        ("miss, nothing cached: context entry, PASID entry and five levels", Caching::None, 1),
    ] {
        session.case(Suite::Translate, name);
        let pages = COLD * 8;
        let mut unit = Translator::new(1, pages, UnitConfig { caching, ..UnitConfig::default() })?;
        let miss = || {
            unit.forget();
            // 509 is prime to the number of pages: none comes twice.
            each(COLD, |n| unit.translate(0, (n * stride) & (pages - 1)))
        };
        let pair = paired(session.time, miss, || hit(&small, TURN)).context(name)?;
        let row = Row::compared(Suite::Translate, name, &pair, "ns", BASELINE);
        let aimed = stride == 1 && caching == Caching::Strict;
        session.rows.push(if aimed { row.aiming(Goal::G6, Target::value_at_most(100.0)) } else { row });
    }
    Ok(())
}
