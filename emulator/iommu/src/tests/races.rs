//! A guest that changes entries under the walker's hands.
use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use svadev_spec::vtd::FaultReason;

use crate::walk::{FirstStage, Leaf, Limits, Lost, Tables, Want};

/// Tables in which the next `losses` exchanges find that somebody was quicker: the right to write is gone.
struct Contended {
    entries: RefCell<HashMap<u64, u64>>,
    losses: Cell<u32>,
}

impl Tables for Contended {
    fn load(&self, address: u64, _: bool) -> Result<u64, FaultReason> {
        Ok(self.entries.borrow().get(&address).copied().unwrap_or(0))
    }

    fn exchange(&self, address: u64, old: u64, new: u64) -> Result<Result<(), Lost>, FaultReason> {
        if let Some(left) = self.losses.get().checked_sub(1) {
            self.losses.set(left);
            self.entries.borrow_mut().insert(address, old & !2);
            return Ok(Err(Lost));
        }
        self.entries.borrow_mut().insert(address, new);
        Ok(Ok(()))
    }
}

const WANT: Want =
    Want { read: true, write: false, execute: false, execute_demanded: false, privileged: false, dirty: true };

const STAGE: FirstStage = FirstStage {
    root: 0x1000,
    levels: 4,
    supervisor_requests: false,
    execute_requests: false,
    write_protect: false,
    extended_accessed: false,
    page_walk_snoop: true,
};

const LIMITS: Limits = Limits { host_address_width: 46, guest_address_width: 57, pages_1gib: true };

/// Four levels where only the leaf's dirty bit is still to be set. Returns the walk's end and the leaf after it.
fn walk(losses: u32) -> (Result<Leaf, FaultReason>, u64) {
    let entries = (1..=4u64).map(|table| (table << 12, (table + 1) << 12 | 0x27)).collect();
    let tables = Contended { entries: RefCell::new(entries), losses: Cell::new(losses) };
    let end = STAGE.walk(&tables, LIMITS, 0, WANT);
    let leaf = tables.entries.borrow()[&0x4000];
    (end, leaf)
}

#[test]
fn a_lost_race_is_walked_again_with_the_new_entry() {
    let (end, leaf) = walk(0);
    assert_eq!((end.unwrap().write, leaf), (true, 0x5067), "undisturbed: writable, and dirty is set");
    let (end, leaf) = walk(1);
    assert_eq!((end.unwrap().write, leaf), (false, 0x5025), "the right was taken: neither given nor dirty");
}

#[test]
fn a_race_lost_for_ever_ends() {
    let tables = Contended { entries: RefCell::new([(0x1000, 0x2007)].into()), losses: Cell::new(u32::MAX) };
    assert_eq!(STAGE.walk(&tables, LIMITS, 0, WANT), Err(FaultReason::FirstStageUpdateFailed));
    assert!(tables.losses.get() > u32::MAX - 100, "after a few walks");
}
