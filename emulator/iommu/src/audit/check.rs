//! Compares entries with the tables, in the background and at each use.
use svadev_fabric::{Access, AtsError, Bdf, Pasid, Translation, TranslationRequest};
use svadev_memory::GuestMemory;

use super::books::{Class, Key, NO_PASID, Place, SIZES_LOG2};
use super::events::{EventKind, Subject};
use super::live::{Live, context_outdated, pasid_outdated};
use super::{Auditor, Cached, Finding, FindingKind};
use crate::address_space::Stages;
use crate::admission::Admission;
use crate::cache::{CacheTag, Mapping, ScanCursor};
use crate::observe::CachedEntry;

/// Where the background work goes on.
#[derive(Debug, Default)]
pub(super) struct Cursors {
    books: Option<Key>,
    pages: ScanCursor,
    structures: ScanCursor,
    entries: usize,
    /// Which piece of a large page is checked: another one in each pass.
    piece: u64,
}

/// What a finding is about.
#[derive(Clone, Copy)]
struct Suspicion {
    kind: FindingKind,
    key: Key,
    user: (Bdf, Option<Pasid>),
    since_ns: Option<u64>,
    in_use: bool,
}

impl Auditor {
    /// One slice of background work: about `budget` entries of the books and as many of each cache.
    pub(crate) fn slice<M: GuestMemory>(&mut self, admission: &Admission<'_, M>, budget: usize) {
        for key in self.books.take_rechecks() {
            self.check_key(admission, key);
        }
        let keys = self.books.keys_after(self.cursors.books, budget);
        self.cursors.books = keys.last().copied().filter(|_| keys.len() == budget);
        if self.cursors.books.is_none() {
            self.cursors.piece = self.cursors.piece.wrapping_add(1);
        }
        for key in keys {
            self.check_key(admission, key);
        }
        self.check_caches(admission, budget);
    }

    /// The answer to a translation request goes out.
    pub(crate) fn answered<M: GuestMemory>(
        &mut self,
        admission: &Admission<'_, M>,
        request: TranslationRequest,
        answer: Result<Translation, AtsError>,
    ) {
        let TranslationRequest { requester, pasid, iova, .. } = request;
        let Some(answer) = answer.ok().filter(|answer| answer.is_present() && !answer.untranslated_only) else {
            return self.history.push(EventKind::NoTranslation { requester, pasid, iova: iova.0 });
        };
        let Translation { gpa, size_log2, access, .. } = answer;
        self.history.push(EventKind::Translation { requester, pasid, iova: iova.0, gpa: gpa.0, size_log2, access });
        let key = Key::given(requester, pasid, iova.0, size_log2);
        self.books.enter(key, CachedEntry::Page { gpa: gpa.0, read: access.read, write: access.write }, false);
        self.unit_use(admission, (requester, pasid), iova.0, &answer);
    }

    /// The requester and PASID that use a key's entry.
    fn user(&self, key: &Key) -> Option<(Bdf, Option<Pasid>)> {
        match key.place {
            Place::Unit => self.owners.get(&key.space).copied(),
            Place::Entries(bdf) if key.is_context() => Some((bdf, None)),
            Place::Entries(bdf) => Some((bdf, Some(Pasid::from_low_bits(key.space)))),
            Place::Function(bdf) => Some((bdf, (key.space != NO_PASID).then(|| Pasid::from_low_bits(key.space)))),
        }
    }

    /// The offset of the piece of a large page that is checked this time.
    fn piece(&self, key: &Key) -> u64 {
        if key.class.level().is_some() || matches!(key.place, Place::Entries(_)) {
            return 0;
        }
        // An odd factor visits every piece, far apart ones first.
        (self.cursors.piece.wrapping_mul(0x9_e377_9b9b) << 12) & ((1 << key.size_log2()) - 1)
    }

    /// What the tables say about one address of a key.
    fn live<M: GuestMemory>(
        &mut self,
        admission: &Admission<'_, M>,
        user: (Bdf, Option<Pasid>),
        key: &Key,
        offset: u64,
    ) -> Live {
        self.checks += 1;
        let space = (key.place == Place::Unit).then(|| CacheTag::from_word(key.space));
        admission.live(user, space, key.iova() + offset, key.class.level())
    }

    /// Whether an entry with this value differs from the tables, and what these say.
    fn compare<M: GuestMemory>(
        &mut self,
        admission: &Admission<'_, M>,
        user: (Bdf, Option<Pasid>),
        key: &Key,
        value: &CachedEntry,
        offset: u64,
    ) -> Option<String> {
        match value {
            CachedEntry::Page { .. } | CachedEntry::Table(_) => {
                let live = self.live(admission, user, key, offset);
                live.outdates(value, offset).then(|| live.text(key.class))
            }
            CachedEntry::Pasid(old) => {
                self.checks += 1;
                let new = admission.live_pasid(user.0, user.1.map_or(0, Pasid::get));
                let text = || new.map_or_else(|| "nothing present".into(), |new| CachedEntry::Pasid(new).to_string());
                pasid_outdated(old, new.as_ref()).then(text)
            }
            CachedEntry::Context(old) => {
                self.checks += 1;
                let new = admission.live_context(user.0);
                let text = || new.map_or_else(|| "nothing present".into(), |new| CachedEntry::Context(new).to_string());
                context_outdated(old, new.as_ref()).then(text)
            }
        }
    }

    /// Checks every entry under a key, and reports one that has been stale for too long.
    fn check_key<M: GuestMemory>(&mut self, admission: &Admission<'_, M>, key: Key) {
        let Some(user) = self.user(&key) else { return };
        for index in 0..self.books.get(&key).len() {
            let held = self.books.get(&key)[index];
            if held.covered {
                continue;
            }
            let offset = if held.stale_since_ns.is_some() { held.stale_offset } else { self.piece(&key) };
            match self.compare(admission, user, &key, &held.value, offset) {
                None => self.books.get_mut(&key)[index].stale_since_ns = None,
                Some(new) => self.differs((key, index, offset), user, new, false),
            }
        }
    }

    /// An entry differs from the tables, and no invalidation is under way.
    fn differs(
        &mut self,
        (key, index, offset): (Key, usize, u64),
        user: (Bdf, Option<Pasid>),
        new: String,
        in_use: bool,
    ) {
        let now_ns = self.history.now_ns();
        let held = &mut self.books.get_mut(&key)[index];
        let since_ns = *held.stale_since_ns.get_or_insert_with(|| {
            held.stale_offset = offset;
            now_ns
        });
        let old = held.value;
        if now_ns - since_ns < self.config.limit_ns {
            return self.books.recheck(key);
        }
        let kind = FindingKind::MissingInvalidation;
        self.find(Suspicion { kind, key, user, since_ns: Some(since_ns), in_use }, old, new);
    }

    /// Checks the next entries of the unit's caches. An entry that is not in the books should have been invalidated.
    fn check_caches<M: GuestMemory>(&mut self, admission: &Admission<'_, M>, budget: usize) {
        let mut found = Vec::new();
        admission.walker.caches.each_page(&mut self.cursors.pages, budget, |tag, iova, mapping: Mapping| {
            let leaf = mapping.leaf();
            let value = CachedEntry::Page { gpa: leaf.address(), read: leaf.read(), write: leaf.write() };
            found.push((Key::page(tag, iova, leaf.size().log2()), value));
        });
        admission.walker.caches.each_structure(&mut self.cursors.structures, budget, |tag, level, iova, partial| {
            found.push((Key::table(tag, iova, level), CachedEntry::Table(partial)));
        });
        admission.entries.each(&mut self.cursors.entries, budget, |(source_id, pasid), entry| {
            found.push((Key::pasid(Bdf(source_id), pasid), CachedEntry::Pasid(*entry)))
        });
        admission.entries.each_context(|source_id, context| {
            found.push((Key::context(Bdf(source_id)), CachedEntry::Context(*context)));
        });
        for (key, value) in found {
            self.check_cached(admission, key, value, false);
        }
    }

    /// Checks one entry of the unit's caches.
    fn check_cached<M: GuestMemory>(
        &mut self,
        admission: &Admission<'_, M>,
        key: Key,
        value: CachedEntry,
        in_use: bool,
    ) {
        if self.books.get(&key).iter().any(|held| held.value == value) {
            return;
        }
        let Some(user) = self.user(&key) else { return };
        let offset = self.piece(&key);
        if let Some(new) = self.compare(admission, user, &key, &value, offset) {
            self.unknown(key, user, value, new, in_use);
        }
    }

    /// A stale entry that should have been invalidated, unless the books are incomplete.
    fn unknown(&mut self, key: Key, user: (Bdf, Option<Pasid>), value: CachedEntry, new: String, in_use: bool) {
        if self.books.forgotten() > 0 {
            return self.books.enter(key, value, false);
        }
        let kind = FindingKind::StaleAfterInvalidation;
        self.find(Suspicion { kind, key, user, since_ns: None, in_use }, value, new);
    }

    /// The unit gives an answer. If it came from the IOTLB, its entry must be in the books.
    pub(crate) fn unit_use<M: GuestMemory>(
        &mut self,
        admission: &Admission<'_, M>,
        user: (Bdf, Option<Pasid>),
        iova: u64,
        answer: &Translation,
    ) {
        let Translation { gpa, size_log2, access, .. } = *answer;
        let Some(entry) = admission.live_address_space(user.0, user.1) else { return };
        let space = entry.tag;
        let known = |held: &super::books::Held| matches!(held.value, CachedEntry::Page { gpa: to, .. } if to == gpa.0);
        let key = Key::page(space, iova, size_log2);
        if entry.stages == Stages::PassThrough
            || access.privileged
            || access.execute
            || !admission.walker.caching()
            || self.books.get(&key).iter().any(known)
        {
            return;
        }
        let offset = iova & ((1 << size_log2) - 1) & !0xfff;
        let value = CachedEntry::Page { gpa: gpa.0, read: access.read, write: access.write };
        let live = self.live(admission, user, &key, offset);
        if live.outdates(&value, offset) {
            self.unknown(key, user, value, live.text(key.class), true);
        }
    }

    /// A function uses an entry of its device TLB.
    pub(crate) fn device_use<M: GuestMemory>(
        &mut self,
        admission: &Admission<'_, M>,
        user: (Bdf, Option<Pasid>),
        iova: u64,
        gpa: u64,
        access: Access,
    ) {
        let page = iova & !0xfff;
        let used = CachedEntry::Page { gpa: gpa & !0xfff, read: access.read, write: access.write };
        let small = Key::given(user.0, user.1, page, 12);
        let live = self.live(admission, user, &small, 0);
        // A function may keep a part of what it was given, never more.
        let given = SIZES_LOG2.iter().find_map(|&size_log2| {
            let key = Key::given(user.0, user.1, page, size_log2);
            let offset = page & ((1 << size_log2) - 1);
            let index = self.books.get(&key).iter().position(|held| {
                matches!(held.value, CachedEntry::Page { gpa: to, read, write }
                    if to + offset == gpa & !0xfff && (read || !access.read) && (write || !access.write))
            })?;
            Some((key, index, offset))
        });
        if !live.outdates(&used, 0) {
            return;
        }
        match given {
            Some((key, index, _)) if self.books.get(&key)[index].covered => {}
            Some(place) => self.differs(place, user, live.text(small.class), true),
            None => self.unknown(small, user, used, live.text(small.class), true),
        }
    }

    fn find(&mut self, suspicion: Suspicion, old: CachedEntry, new: String) {
        let Suspicion { kind, key, user: (requester, pasid), since_ns, in_use } = suspicion;
        let in_table = matches!(key.place, Place::Entries(_));
        let (page, size_log2) = if in_table { (0, 63) } else { (key.iova(), key.size_log2()) };
        if self.findings.is_known(kind, pasid, page, size_log2) {
            return;
        }
        let domain_id = (key.place == Place::Unit).then(|| CacheTag::from_word(key.space).domain_id());
        let events = self.history.about(Subject { domain_id, pasid, page, size_log2 });
        let completed = events.iter().rev().find(|event| event.kind == EventKind::Completed).map(|event| event.at_ns);
        let cache = match (key.place, key.class) {
            (Place::Function(_), _) => Cached::DeviceTlb,
            (_, Class::Table(level)) => Cached::PagingStructure(level),
            (_, Class::Page(_)) => Cached::Iotlb,
            (_, Class::Entry) if key.is_context() => Cached::ContextCache,
            (_, Class::Entry) => Cached::PasidCache,
        };
        let age_ns =
            self.history.now_ns() - since_ns.or(completed).unwrap_or(self.history.now_ns()).min(self.history.now_ns());
        let at_ns = self.history.now_ns();
        let old = old.to_string();
        self.findings.add(Finding {
            kind,
            cache,
            requester,
            pasid,
            page,
            size_log2,
            old,
            new,
            age_ns,
            in_use,
            at_ns,
            events,
        });
    }
}
