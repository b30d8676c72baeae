//! What a translation costs: `cargo bench -p svadev-iommu`.
//!
//! Absolute times move from machine to machine and from run to run; each table therefore also gives the ratio to its
//! first row. A row is the best of several rounds, which is the one that other work on the machine disturbed least.
//!
//! What limits what, as a profile shows: a lookup is two multiplications and a comparison in one set. A whole request
//! is mostly its result, whose small fields are written one by one; structures of that kind on the way, read back as a
//! whole, once made it four times as slow, for the processor stalls on such loads. Pages at random among more than its
//! second-level cache holds cost that cache's miss. A miss is a load of the leaf, and of the cache set that the new
//! entry goes into.
#![allow(clippy::print_stdout, reason = "a benchmark prints its results")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use svadev_fabric::testing::Silent;
use svadev_fabric::{Access, Bdf, Iova, Pasid, TranslationRequest};
use svadev_iommu::measure::{HOT_PAGES, Lookups};
use svadev_iommu::{Caching, Unit, UnitConfig};
use svadev_memory::{GuestAddress, GuestMemory, Ram};
use svadev_spec::vtd::registers::offset;
use svadev_spec::vtd::tables::Level;

const DEVICE: Bdf = Bdf(0x0010);
const ROOT: u64 = 0x1000;
const CONTEXTS: u64 = 0x2000;
const QUEUE: u64 = 0x3000;
const DIRECTORY: u64 = 0x10_0000;
/// Present, writable, user, accessed, dirty: a walk writes nothing.
const OPEN: u64 = 0x67;
const ROUNDS: usize = 7;

/// A unit with `pasids` five-level first-stage PASIDs, all with the same tables, in which `pages` pages follow each
/// other.
struct World {
    unit: Unit<Arc<Ram>>,
    ram: Arc<Ram>,
    free: u64,
    tail: u64,
}

impl World {
    fn new(pasids: u64, pages: u64, config: UnitConfig) -> Self {
        let ram = Arc::new(Ram::new(64 << 20).expect("64 MiB of memory"));
        let mut world = Self { unit: Unit::new(config, Arc::clone(&ram)), ram, free: 0x80_0000, tail: 0 };
        world.store(ROOT, CONTEXTS | 1);
        // DTE, PASIDE, PRE, PDTS 7.
        world.store(CONTEXTS + 32 * u64::from(DEVICE.devfn()), DIRECTORY | 7 << 9 | 0b11101);
        let root = world.page();
        for page in 0..pages {
            let mut table = root;
            for level in Level::WITH_TABLES.into_iter().rev() {
                let at = table + level.entry_offset(page << 12);
                table = match world.ram.load_u64(GuestAddress(at)).expect("tables are in memory") {
                    0 => {
                        let next = world.page();
                        world.store(at, next | OPEN);
                        next
                    }
                    entry => entry & !0xfff,
                };
            }
            world.store(table + Level::ONE.entry_offset(page << 12), page << 12 | OPEN);
        }
        for pasid in 0..pasids {
            let at = DIRECTORY + 8 * (pasid >> 6);
            if pasid & 63 == 0 {
                let table = world.page();
                world.store(at, table | 1);
            }
            let entry = (world.ram.load_u64(GuestAddress(at)).expect("in memory") & !0xfff) + 64 * (pasid & 63);
            // Domain 1, PWSNP; FSPM 1; PGTT 1.
            world.store(entry + 8, 1 | 1 << 23);
            world.store(entry + 16, root | 1 << 2);
            world.store(entry, 1 << 6 | 1);
        }
        world.unit.write_register(offset::IQA, &(QUEUE | 1 << 11).to_le_bytes(), &Silent);
        world.unit.write_register(offset::RTADDR, &(ROOT | 1 << 10).to_le_bytes(), &Silent);
        for command in [1u32 << 26 | 1 << 30, 1 << 26 | 1 << 31] {
            world.unit.write_register(offset::GCMD, &command.to_le_bytes(), &Silent);
        }
        world
    }

    fn store(&self, at: u64, value: u64) {
        self.ram.write(GuestAddress(at), &value.to_le_bytes()).expect("tables are in memory");
    }

    fn page(&mut self) -> u64 {
        self.free += 0x1000;
        self.free - 0x1000
    }

    fn translate(&mut self, pasid: u64, page: u64) {
        let request = TranslationRequest {
            requester: DEVICE,
            pasid: Some(Pasid::from_low_bits(pasid)),
            iova: Iova(page << 12),
            access: Access::READ_WRITE,
        };
        // By reference: the result was written field by field, and moving it as a whole would wait for that.
        let result = &self.unit.translate(request, &Silent);
        assert!(matches!(result, Ok(translation) if translation.gpa.0 == page << 12), "the tables are whole");
    }

    /// One descriptor, carried out at once.
    fn invalidate(&mut self, low: u64, high: u64) {
        self.store(QUEUE + self.tail, low);
        self.store(QUEUE + self.tail + 8, high);
        self.tail = (self.tail + 32) % 0x1000;
        self.unit.write_register(offset::IQT, &self.tail.to_le_bytes()[..4], &Silent);
    }
}

/// Where the largest queue is: 16384 descriptors of 256 bits.
const LARGE_QUEUE: u64 = 0x40_0000;
const LARGE_QUEUE_BYTES: u64 = 512 << 10;

/// Milliseconds that the largest queue takes in all, and the longest call into the unit on the way, with `low` in every
/// descriptor and a full IOTLB.
fn full_queue(caching: Caching, low: u64) -> (f64, f64) {
    let mut world = World::new(1, 1 << 14, UnitConfig { caching, ..UnitConfig::default() });
    for page in 0..1 << 14 {
        world.translate(0, page);
    }
    for at in (LARGE_QUEUE..LARGE_QUEUE + LARGE_QUEUE_BYTES).step_by(32) {
        world.store(at, low);
    }
    world.unit.write_register(offset::GCMD, &(1u32 << 31).to_le_bytes(), &Silent);
    world.unit.write_register(offset::IQA, &(LARGE_QUEUE | 1 << 11 | 7).to_le_bytes(), &Silent);
    world.unit.write_register(offset::IQT, &0u64.to_le_bytes(), &Silent);
    world.unit.write_register(offset::GCMD, &(1u32 << 31 | 1 << 26).to_le_bytes(), &Silent);
    let (start, mut longest) = (Instant::now(), 0.0f64);
    let tail = LARGE_QUEUE_BYTES - 32;
    let mut call = Instant::now();
    world.unit.write_register(offset::IQT, &tail.to_le_bytes(), &Silent);
    longest = longest.max(call.elapsed().as_secs_f64() * 1e3);
    while world.unit.queue_is_unfinished() {
        call = Instant::now();
        world.unit.continue_queue(&Silent);
        longest = longest.max(call.elapsed().as_secs_f64() * 1e3);
    }
    let mut head = [0; 8];
    world.unit.read_register(offset::IQH, &mut head);
    assert_eq!(u64::from_le_bytes(head), tail, "all of the queue was carried out");
    (start.elapsed().as_secs_f64() * 1e3, longest)
}

/// Nanoseconds of one of `count` calls, the best of [`ROUNDS`]; `before` is not counted.
fn best(count: u64, mut before: impl FnMut(usize), mut run: impl FnMut(u64)) -> f64 {
    (0..ROUNDS)
        .map(|round| {
            before(round);
            let start = Instant::now();
            for i in 0..count {
                run(i);
            }
            start.elapsed().as_secs_f64() * 1e9 / count as f64
        })
        .fold(f64::INFINITY, f64::min)
}

fn table(title: &str, rows: &[(String, f64)]) {
    println!("\n{title}");
    for (name, ns) in rows {
        println!("  {name:<44} {ns:8.1} ns  {:6.2}", ns / rows[0].1);
    }
}

/// A number below `below`, a power of two, in no simple order. No division: that alone would cost as much as a hit.
fn scrambled(i: u64, below: u64) -> u64 {
    i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20 & (below - 1)
}

/// The IOTLB alone: the hot set is the same in each row, what lies around it grows.
fn lookups() {
    let loop_alone = best(
        1 << 20,
        |_| {},
        |i| {
            black_box(scrambled(black_box(i), 64));
        },
    );
    let mut rows = vec![("the loop alone".to_owned(), loop_alone)];
    for (entries, stale) in [(64u64, 0u64), (1 << 14, 0), (1 << 14, 1 << 14), (1 << 20, 0), (1 << 20, 1 << 20)] {
        let lookups = Lookups::new(entries, stale);
        let ns = best(
            1 << 20,
            |_| {},
            |i| {
                assert!(black_box(lookups.hit(scrambled(i, HOT_PAGES))));
            },
        );
        rows.push((format!("64 hot of {entries} entries, {stale} stale"), ns));
    }
    table("IOTLB lookup alone, hit", &rows);
}

fn main() {
    // `cargo test --all-targets` runs this, too, and wants no numbers.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    lookups();

    let mut rows = Vec::new();
    for pasids in [1u64, 16, 256, 4096] {
        let mut world = World::new(pasids, 1, UnitConfig::default());
        for pasid in 0..pasids {
            world.translate(pasid, 0);
        }
        rows.push((
            format!("hit, {pasids} PASIDs"),
            best(1 << 18, |_| {}, |i| world.translate(scrambled(i, pasids), 0)),
        ));
    }
    table("Translation request, one page of each PASID in turn", &rows);

    let mut rows = Vec::new();
    for pages in [1u64, 64, 4096, 1 << 18] {
        let config = UnitConfig { iotlb_entries: 1 << 20, ..UnitConfig::default() };
        let mut world = World::new(1, pages, config);
        for page in 0..pages {
            world.translate(0, page);
        }
        let hot = pages.min(64);
        let ns = best(1 << 18, |_| {}, |i| world.translate(0, scrambled(i, hot)));
        rows.push((format!("hit, {hot} hot of {pages} pages cached"), ns));
        let ns = best(1 << 18, |_| {}, |i| world.translate(0, scrambled(i, pages)));
        rows.push((format!("hit, {pages} pages at random"), ns));
    }
    table("Translation request, pages of one PASID", &rows);

    let mut rows = Vec::new();
    for (name, caching) in
        [("no caching", Caching::None), ("strict", Caching::Strict), ("adversarial", Caching::Adversarial)]
    {
        let mut world = World::new(1, 1 << 15, UnitConfig { caching, ..UnitConfig::default() });
        // Fewer pages than the IOTLB has room for, so that nothing is evicted and only the invalidation makes misses.
        let ns = best(
            4096,
            |_| (),
            |i| {
                if i == 0 {
                    // PASID-selective: all of the IOTLB that is ours, and none of the PASID cache.
                    world.invalidate(6 | 2 << 4 | 1 << 16, 0);
                }
                world.translate(0, i);
            },
        );
        rows.push((format!("miss, five levels, neighbours, {name}"), ns));
        let ns = best(
            4096,
            |_| (),
            |i| {
                if i == 0 {
                    world.invalidate(6 | 2 << 4 | 1 << 16, 0);
                }
                // 4099 is prime to the number of pages: none twice.
                world.translate(0, (i * 4099) & 0x7fff);
            },
        );
        rows.push((format!("miss, five levels, far apart, {name}"), ns));
    }
    table("Translation request, one walk each", &rows);

    let mut world = World::new(4096, 1, UnitConfig::default());
    let ns = best(
        4096,
        |_| (),
        |i| {
            if i == 0 {
                // Every context and PASID entry, every translation.
                world.invalidate(1 | 1 << 4, 0);
                world.invalidate(2 | 1 << 4, 0);
            }
            world.translate(i, 0);
        },
    );
    table("Translation request, PASID entry and five levels", &[("miss, 4096 PASIDs".into(), ns)]);

    let mut world = World::new(1, 4096, UnitConfig::default());
    for page in 0..4096 {
        world.translate(0, page);
    }
    let mut rows = Vec::new();
    for (name, low, mask) in [
        ("one page", 6 | 3 << 4 | 1 << 16, 0),
        ("64 pages", 6 | 3 << 4 | 1 << 16, 6),
        ("the PASID", 6 | 2 << 4 | 1 << 16, 0),
    ] {
        rows.push((name.to_owned(), best(4096, |_| (), |i| world.invalidate(low, i << 12 | mask))));
    }
    table("Invalidation, register write and descriptor", &rows);

    println!("\nThe largest queue, 16384 descriptors: all of it, and the longest call");
    for (name, caching) in
        [("no caching", Caching::None), ("strict", Caching::Strict), ("adversarial", Caching::Adversarial)]
    {
        for (what, low) in
            [("another PASID", 6 | 2 << 4 | 9 << 16), ("another domain", 2 | 2 << 4 | 9 << 16), ("all", 2 | 1 << 4)]
        {
            let (all, longest) = full_queue(caching, low);
            println!("  {:<44} {all:8.1} ms  {longest:8.1} ms", format!("{name}, {what}"));
        }
    }
}
