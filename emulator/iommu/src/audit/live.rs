//! What the tables say now: walks that use no cache and mark no entry.
use svadev_fabric::{Bdf, Pasid};
use svadev_memory::{GuestAddress, GuestMemory};
use svadev_spec::vtd::tables::Level;

use super::books::Class;
use crate::address_space::{AddressSpace, FirstStage, SecondStage, Stages};
use crate::admission::Admission;
use crate::cache::{CacheTag, PartialWalk};
use crate::config::Limits;
use crate::observe::CachedEntry;
use crate::tables::Context;
use crate::walk::{Stage, Tables, WalkEnd, WalkFault, Want};

/// Demands no right and marks no entry.
const LOOK: Want =
    Want { read: false, write: false, execute: false, execute_demanded: false, privileged: false, dirty: false };

/// Tables whose entries are read and never marked.
struct Untouched<'a, M> {
    memory: &'a M,
    /// The level whose paging-structure entry is asked for, if one is.
    level: Option<Level>,
    partial: Option<PartialWalk>,
    /// The last entry that was read, and where.
    last: (u64, u64),
}

impl<'a, M> Untouched<'a, M> {
    fn new(memory: &'a M, level: Option<Level>) -> Self {
        Self { memory, level, partial: None, last: (0, 0) }
    }
}

impl<M: GuestMemory> Tables for Untouched<'_, M> {
    fn load(&mut self, address: u64, level: Level) -> Result<u64, WalkFault> {
        // Which stage it is does not matter: nobody asks why there is no page.
        let unreadable = |_| WalkFault::at(WalkFault::Unreadable, Stage::First, level);
        let entry = self.memory.load_u64(GuestAddress(address)).map_err(unreadable)?;
        self.last = (address, entry);
        Ok(entry)
    }

    fn exchange(&mut self, _address: u64, _level: Level, _old: u64, _new: u64) -> Result<(), WalkEnd> {
        Ok(())
    }

    fn keep_structure(&mut self, _address: u64, level: Level, partial: PartialWalk) {
        if Some(level) == self.level {
            self.partial = Some(partial);
        }
    }
}

/// First-stage tables whose addresses go through second-stage tables.
struct UntouchedNested<'a, M> {
    inner: Untouched<'a, M>,
    second: SecondStage,
    limits: Limits,
}

impl<M: GuestMemory> Tables for UntouchedNested<'_, M> {
    fn load(&mut self, address: u64, level: Level) -> Result<u64, WalkFault> {
        let leaf = self.second.walk(&mut Untouched::new(self.inner.memory, None), self.limits, address, LOOK)?;
        self.inner.load(leaf.at(address), level)
    }

    fn exchange(&mut self, address: u64, level: Level, old: u64, new: u64) -> Result<(), WalkEnd> {
        self.inner.exchange(address, level, old, new)
    }

    fn keep_structure(&mut self, address: u64, level: Level, partial: PartialWalk) {
        self.inner.keep_structure(address, level, partial);
    }
}

/// What the tables say about an address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Live {
    /// Where this address leads, whether reads are allowed, and whether writes are. Not the first byte of the page.
    pub(super) leaf: Option<(u64, bool, bool)>,
    /// The paging-structure entry at the level that was asked for.
    pub(super) partial: Option<PartialWalk>,
    /// The last entry that was read, and where it is.
    pub(super) entry: (u64, u64),
}

impl Live {
    const NOTHING: Self = Self { leaf: None, partial: None, entry: (0, 0) };

    /// Whether a cached entry that says `value` about this address may no longer be used. An entry that allows less
    /// than the tables may stay: software need not invalidate when it adds rights (§6.5.2, not-present and permission
    /// faults are looked for again).
    pub(super) fn outdates(&self, value: &CachedEntry, offset: u64) -> bool {
        match *value {
            CachedEntry::Page { gpa, read, write } => match self.leaf {
                None => true,
                Some((to, may_read, may_write)) => to != gpa + offset || (read && !may_read) || (write && !may_write),
            },
            CachedEntry::Table(old) => match self.partial {
                None => true,
                Some(new) => {
                    old.table() != new.table()
                        || (old.read() && !new.read())
                        || (old.write() && !new.write())
                        || (old.execute() && !new.execute())
                }
            },
            CachedEntry::Pasid(_) | CachedEntry::Context(_) => unreachable!("those are compared as such"),
        }
    }

    /// A description for a finding.
    pub(super) fn text(&self, class: Class) -> String {
        let (at, entry) = self.entry;
        let source = if at == 0 { String::new() } else { format!(" (entry {entry:#018x} at {at:#x})") };
        let text = if class.level().is_some() {
            self.partial.map(|partial| CachedEntry::Table(partial).to_string())
        } else {
            self.leaf.map(|(gpa, read, write)| CachedEntry::Page { gpa, read, write }.to_string())
        };
        text.unwrap_or_else(|| "nothing present".into()) + &source
    }
}

/// The stage with page-walk snooping on: a walk that only looks must not end because it may not set a bit.
fn snooped(first: FirstStage) -> FirstStage {
    FirstStage { page_walk_snoop: true, ..first }
}

impl<M: GuestMemory> Admission<'_, M> {
    /// What the tables say about `address` for a requester. `level` is the level of a paging-structure entry that is
    /// asked for as well. `space` is the cache tag of the entry that is compared, if it has one: tables of another tag
    /// are not where that entry came from.
    pub(super) fn live(
        &self,
        (requester, pasid): (Bdf, Option<Pasid>),
        space: Option<CacheTag>,
        address: u64,
        level: Option<Level>,
    ) -> Live {
        let Some(entry) = self.live_address_space(requester, pasid) else { return Live::NOTHING };
        let domain_id = entry.tag.domain_id();
        if space.is_some_and(|space| space.domain_id() != domain_id) {
            return Live::NOTHING;
        }
        let of_domain = space.is_some_and(|space| !space.has_pasid());
        let (memory, limits) = (&self.walker.memory, self.walker.limits);
        match entry.stages {
            Stages::PassThrough => Live { leaf: Some((address, true, true)), ..Live::NOTHING },
            Stages::First(first) => {
                let mut tables = Untouched::new(memory, level);
                let leaf = snooped(first).walk(&mut tables, limits, address, LOOK).ok();
                let leaf = leaf.map(|leaf| (leaf.at(address), leaf.read(), leaf.write()));
                Live { leaf, partial: tables.partial, entry: tables.last }
            }
            Stages::Second(second) | Stages::Nested(_, second) if of_domain => {
                live_second(memory, second, limits, address, level)
            }
            Stages::Second(second) => live_second(memory, second, limits, address, level),
            Stages::Nested(first, second) => {
                let second = SecondStage { accessed_dirty: false, ..second };
                let mut tables = UntouchedNested { inner: Untouched::new(memory, level), second, limits };
                let outer = snooped(first).walk(&mut tables, limits, address, LOOK).ok();
                let leaf = outer.and_then(|outer| {
                    let gpa = outer.at(address);
                    let (to, read, write) = live_second(memory, second, limits, gpa, None).leaf?;
                    Some((to, outer.read() && read, outer.write() && write))
                });
                Live { leaf, partial: tables.inner.partial, entry: tables.inner.last }
            }
        }
    }

    /// What a PASID table entry, or a requester's legacy context entry, says now.
    pub(super) fn live_pasid(&self, requester: Bdf, pasid: u32) -> Option<AddressSpace> {
        self.live_address_space(requester, Some(Pasid::from_low_bits(pasid.into())))
    }
}

fn live_second<M: GuestMemory>(
    memory: &M,
    second: SecondStage,
    limits: Limits,
    address: u64,
    level: Option<Level>,
) -> Live {
    let mut tables = Untouched::new(memory, level);
    let second = SecondStage { accessed_dirty: false, ..second };
    let leaf = second.walk(&mut tables, limits, address, LOOK).ok();
    let leaf = leaf.map(|leaf| (leaf.at(address), leaf.read(), leaf.write()));
    Live { leaf, partial: tables.partial, entry: tables.last }
}

/// Whether a cached PASID entry may no longer be used.
pub(super) fn pasid_outdated(old: &AddressSpace, new: Option<&AddressSpace>) -> bool {
    new.is_none_or(|new| {
        old.tag != new.tag
            || old.stages != new.stages
            || (old.serves_ats && !new.serves_ats)
            || (old.serves_pasids && !new.serves_pasids)
    })
}

/// Whether a cached context entry may no longer be used.
pub(super) fn context_outdated(old: &Context, new: Option<&Context>) -> bool {
    new.is_none_or(|new| !new.allows_all_of(old))
}
