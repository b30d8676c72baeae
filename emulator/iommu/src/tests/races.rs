//! A guest that changes entries under the walker's hands.
use std::collections::HashMap;

use svadev_spec::vtd::tables::Level;

use crate::UnitConfig;
use crate::address_space::FirstStage;
use crate::cache::Leaf;
use crate::config::Limits;
use crate::walk::{Stage, Tables, WalkEnd, WalkFault, Want};

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
