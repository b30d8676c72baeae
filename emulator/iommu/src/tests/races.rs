//! A guest that changes entries under the walker's hands.
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use svadev_fabric::Access;
use svadev_memory::{GuestAddress, GuestMemory, HostWindow, MemoryError, Ram};
use svadev_spec::vtd::tables::Level;

use super::world::{DEVICE, DOMAIN, Mode, PASID, USER_PAGE, World, pasid_cache};
use crate::address_space::FirstStage;
use crate::cache::Leaf;
use crate::config::Limits;
use crate::walk::{Stage, Tables, WalkEnd, WalkFault, Want};
use crate::{FaultReason, UnitConfig};

/// Tables in which the next `losses` exchanges find that somebody was quicker: the right to write is gone.
struct Contended {
    entries: HashMap<u64, u64>,
    losses: u32,
}

impl Tables for Contended {
    fn load(&mut self, address: u64, _: Level) -> Result<u64, WalkFault> {
        Ok(self.entries.get(&address).copied().unwrap_or(0))
    }

    fn exchange(&mut self, address: u64, _: Level, old: u64, new: u64) -> Result<(), WalkEnd> {
        if let Some(left) = self.losses.checked_sub(1) {
            self.losses = left;
            self.entries.insert(address, old & !2);
            return Err(WalkEnd::LostRace);
        }
        self.entries.insert(address, new);
        Ok(())
    }
}

const WANT: Want =
    Want { read: true, write: false, execute: false, execute_demanded: false, privileged: false, dirty: true };

const STAGE: FirstStage = FirstStage {
    root: 0x1000,
    top: Level::FOUR,
    supervisor_requests: false,
    execute_requests: false,
    write_protect: false,
    extended_accessed: false,
    page_walk_snoop: true,
};

fn limits() -> Limits {
    Limits::new(&UnitConfig { host_address_width: 46, ..UnitConfig::default() })
}

/// Four levels where only the leaf's dirty bit is still to be set. Returns the walk's end and the leaf after it.
fn walk(losses: u32) -> (Result<Leaf, WalkFault>, u64) {
    let entries = (1..=4u64).map(|table| (table << 12, (table + 1) << 12 | 0x27)).collect();
    let mut tables = Contended { entries, losses };
    let end = STAGE.walk(&mut tables, limits(), 0, WANT);
    let leaf = tables.entries[&0x4000];
    (end, leaf)
}

#[test]
fn a_lost_race_is_walked_again_with_the_new_entry() {
    let (end, leaf) = walk(0);
    assert_eq!((end.unwrap().write(), leaf), (true, 0x5067), "undisturbed: writable, and dirty is set");
    let (end, leaf) = walk(1);
    assert_eq!((end.unwrap().write(), leaf), (false, 0x5025), "the right was taken: neither given nor dirty");
}

#[test]
fn a_race_lost_for_ever_ends() {
    let mut tables = Contended { entries: [(0x1000, 0x2007)].into(), losses: u32::MAX };
    assert_eq!(STAGE.walk(&mut tables, limits(), 0, WANT), Err(WalkFault::NotUpdated(Stage::First)));
    assert!(tables.losses > u32::MAX - 100, "after a few walks");
}

/// Stores of the guest that happen right after the unit's load of an address, in this order.
type Races = Arc<Mutex<HashMap<u64, Vec<Vec<(u64, u64)>>>>>;

/// Memory with a guest that races the unit's loads.
struct Racing {
    ram: Arc<Ram>,
    races: Races,
}

impl GuestMemory for Racing {
    type Kept = ();
    type View<'a> = &'a Self;

    fn view<'a>(&'a self, (): &'a mut ()) -> &'a Self {
        self
    }
    fn read(&self, gpa: GuestAddress, buf: &mut [u8]) -> Result<(), MemoryError> {
        self.ram.read(gpa, buf)
    }
    fn write(&self, gpa: GuestAddress, buf: &[u8]) -> Result<(), MemoryError> {
        self.ram.write(gpa, buf)
    }
    fn load_u64(&self, gpa: GuestAddress) -> Result<u64, MemoryError> {
        let value = self.ram.load_u64(gpa);
        let mut races = self.races.lock().unwrap();
        if let Some(rounds) = races.get_mut(&gpa.0).filter(|rounds| !rounds.is_empty()) {
            for (at, value) in rounds.remove(0) {
                self.ram.write(GuestAddress(at), &value.to_le_bytes()).unwrap();
            }
        }
        value
    }
    fn store_u32(&self, gpa: GuestAddress, value: u32) -> Result<(), MemoryError> {
        self.ram.store_u32(gpa, value)
    }
    fn store_u64(&self, gpa: GuestAddress, value: u64) -> Result<(), MemoryError> {
        self.ram.store_u64(gpa, value)
    }
    fn compare_exchange_u64(&self, gpa: GuestAddress, current: u64, new: u64) -> Result<Result<u64, u64>, MemoryError> {
        self.ram.compare_exchange_u64(gpa, current, new)
    }
    fn window(&self, gpa: GuestAddress) -> Result<HostWindow, MemoryError> {
        self.ram.window(gpa)
    }
}

/// A world whose guest races the unit, with one page mapped at 0x7000, and where the PASID table entry is.
fn racing() -> (World<Racing>, Races, u64, u64) {
    let races = Races::default();
    let mut world =
        World::over(UnitConfig::default(), |ram| Racing { ram: Arc::clone(ram), races: Arc::clone(&races) });
    world.bring_up();
    let root = world.bind_first_stage(Level::FOUR);
    world.map(root, Level::FOUR, 0x7000, 0x5000 | USER_PAGE, 12);
    let entry = world.pasid_entry(DEVICE, PASID.get());
    (world, races, entry, root)
}

/// Linux before 6.18 clears all of a PASID table entry before it invalidates. Half an entry has another domain, which
/// the invalidation does not name.
#[test]
fn half_a_pasid_entry_is_not_cached_under_a_domain_that_it_never_had() {
    for word in [0, 8] {
        let (mut world, races, entry, root) = racing();
        races.lock().unwrap().insert(entry + word, vec![(0..8).map(|i| (entry + 8 * i, 0)).collect()]);
        assert!(world.translate(Some(PASID), 0x7000, Access::READ).is_err(), "the entry is gone");
        world.submit_and_wait(&[pasid_cache(DOMAIN, PASID.get())]);
        world.bind(DEVICE, PASID.get(), DOMAIN, Mode::First { root, top: Level::FOUR });
        assert_eq!(world.translate_ok(0x7000, Access::READ).0, 0x5000, "bound again, cleared after quadword {word}");
    }
}

/// Linux 6.13 to 6.18 replaces a live entry as a whole.
#[test]
fn a_pasid_entry_replaced_meanwhile_is_the_old_or_the_new_one() {
    let (mut world, races, entry, _) = racing();
    let other = world.page();
    world.map(other, Level::FOUR, 0x7000, 0x6000 | USER_PAGE, 12);
    let replacement = vec![(entry + 8, 2 | 1 << 23), (entry + 16, other)];
    races.lock().unwrap().insert(entry + 8, vec![replacement]);
    assert_eq!(world.translate_ok(0x7000, Access::READ).0, 0x6000);
    world.store(entry, 0);
    world.submit_and_wait(&[pasid_cache(DOMAIN, PASID.get())]);
    assert!(world.translate(Some(PASID), 0x7000, Access::READ).is_ok(), "it is not cached under the old domain");
    world.submit_and_wait(&[pasid_cache(2, PASID.get())]);
    assert!(world.translate(Some(PASID), 0x7000, Access::READ).is_err(), "but under the new one");
}

#[test]
fn a_context_entry_replaced_meanwhile_is_the_old_or_the_new_one() {
    let (mut world, races, _, _) = racing();
    let context = world.context_entry(DEVICE);
    // RID_PASID becomes 5 and DTE is taken away, in one go.
    let replacement = vec![(context, world.load(context) & !4), (context + 8, u64::from(PASID.get()))];
    races.lock().unwrap().insert(context, vec![replacement]);
    assert!(world.translate(None, 0x7000, Access::READ).is_err(), "DTE goes with RID_PASID");
    assert_eq!(world.access(None, 0x7000, Access::READ).unwrap().gpa.0, 0x5000);
}

#[test]
fn an_entry_that_never_stands_still_is_a_fault_and_not_cached() {
    let (mut world, races, entry, _) = racing();
    let domains = (0..1000).map(|i| vec![(entry + 8, 1 << 23 | (2 + i % 7))]).collect();
    races.lock().unwrap().insert(entry + 16, domains);
    assert_eq!(world.blocked(0x7000, Access::READ), FaultReason::PasidTableAccess);
    assert!(races.lock().unwrap()[&(entry + 16)].len() > 900, "after a few readings");
    races.lock().unwrap().clear();
    assert_eq!(world.translate_ok(0x7000, Access::READ).0, 0x5000);
}
