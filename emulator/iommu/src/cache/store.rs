//! Entries under tags, with every invalidation that tags allow, in one of two ways.
use super::exact::Exact;
use super::key::{Key, Space};
use super::{Clock, Floors, Table};

/// When what was last invalidated. Shared by the stores whose entries go by the same invalidations.
#[derive(Debug)]
pub(crate) struct TagFloors {
    all: u64,
    domains: Floors,
    pasids: Floors,
}

impl TagFloors {
    pub(crate) fn new() -> Self {
        Self { all: 0, domains: Floors::new(), pasids: Floors::new() }
    }

    /// Entries of `space` are alive if they were born after this.
    #[inline]
    pub(crate) fn of(&self, space_word: u64) -> u64 {
        self.all.max(self.domains.of(space_word >> 21)).max(self.pasids.of(space_word))
    }

    pub(crate) fn raise_all(&mut self, clock: &mut Clock) {
        self.all = clock.tick();
    }

    pub(crate) fn raise_domain(&mut self, domain_id: u16, clock: &mut Clock) {
        self.domains.raise(domain_id.into(), clock.tick());
    }

    pub(crate) fn raise_space(&mut self, space: Space, clock: &mut Clock) {
        self.pasids.raise(space.word(), clock.tick());
    }
}

/// How far someone has come through a store.
#[derive(Debug, Default)]
pub(crate) struct AuditCursor {
    pub(super) set: usize,
    pub(super) key: Option<Key>,
}

/// A bounded number of entries.
#[derive(Debug)]
pub(crate) enum Store<V> {
    /// Fast. Entries may go early: when a set is full, or when two tags share a floor.
    Sets(Table<Key, V>),
    /// Entries stay as long as they may.
    Exact(Exact<V>),
}

impl<V: Copy> Store<V> {
    pub(crate) fn new(entries: usize, exact: bool, blank: V) -> Self {
        if exact { Self::Exact(Exact::new(entries)) } else { Self::Sets(Table::new(entries, Key::FIRST, blank)) }
    }

    #[inline]
    pub(crate) fn get(&self, floors: &TagFloors, key: Key) -> Option<V> {
        match self {
            Self::Sets(table) => table.get(key, key.hash(), floors.of(key.space_word())).copied(),
            Self::Exact(exact) => exact.get(key),
        }
    }

    #[inline]
    pub(crate) fn insert(&mut self, floors: &TagFloors, key: Key, value: V, clock: &mut Clock) {
        match self {
            Self::Sets(table) => {
                let alive = |key: Key, born| born > floors.of(key.space_word());
                table.insert(key, key.hash(), value, clock.tick(), alive);
            }
            Self::Exact(exact) => exact.insert(key, value),
        }
    }

    /// Calls `f` for the living among the next `count` sets or entries.
    pub(crate) fn each_after(
        &self,
        floors: &TagFloors,
        cursor: &mut AuditCursor,
        count: usize,
        mut f: impl FnMut(Key, V),
    ) {
        match self {
            Self::Sets(table) => table.each_after(&mut cursor.set, count, |key, &value, born| {
                if born > floors.of(key.space_word()) {
                    f(key, value);
                }
            }),
            Self::Exact(exact) => exact.each_after(&mut cursor.key, count, f),
        }
    }

    /// Drops the entries of `space` and `class` from number `first` to `last`. The caller bounds their number unless the store is exact.
    pub(crate) fn drop_range(&mut self, space: Space, class: u8, first: u64, last: u64) {
        match self {
            Self::Sets(table) => {
                for number in first..=last {
                    let key = Key::new(space, class, number);
                    table.remove(key, key.hash());
                }
            }
            Self::Exact(exact) => exact.drop_range(space, class, first, last),
        }
    }

    /// Drops what `doomed` names, if the store is exact: elsewhere floors do that.
    pub(crate) fn drop_exactly(&mut self, doomed: impl Fn(Key, V) -> bool) {
        if let Self::Exact(exact) = self {
            exact.drop_if(doomed);
        }
    }

    pub(crate) fn clear_exactly(&mut self) {
        if let Self::Exact(exact) = self {
            exact.clear();
        }
    }
}
